# Every update rule, once. A rule is the published recurrence over one contiguous block and nothing else.
#
#     rule(w, g, slots, n, c)      w: weights, g: gradient, slots: state arrays, n: elements, c: scalars
#
# What can be computed once per step (bias corrections, a negated learning rate, ...) is folded into the
# scalars c in double precision by the optimizer class, so that one rule serves several published forms.
# reference.py holds the NumPy twin of every rule; both must agree bit for bit, so keep the order of the
# operations the same in both and use nothing but + - * / sqrt and comparisons.


cdef inline real root(real x) noexcept nogil:
    return sqrtf(x) if real is float else sqrt(x)


cdef inline real magnitude(real x) noexcept nogil:
    if real is float:
        return fabsf(x)
    else:
        return fabs(x)


cdef inline real flush(real x) noexcept nogil:
    # Moments of a dead unit decay into denormals, which cost 2 to 4 times as much: store 0 instead while
    # 0.0001 * x (the next product taken of x) is still a normal number. NaN passes. The step itself takes the
    # moment as it was: so this stays off the path to the division, which is the slowest part.
    if real is float:
        return 0 if magnitude(x) < TINY_F32 else x
    else:
        return 0 if magnitude(x) < TINY_F64 else x


cdef inline real sign(real x) noexcept nogil:
    cdef real up_to_0 = -1 if x < 0 else x  # two selects one after the other: nested, GCC compares twice as often
    return 1 if x > 0 else up_to_0  # NaN passes, here and below


cdef inline real larger(real x, real other) noexcept nogil:
    return other if other > x else x


cdef inline real finite(real x) noexcept nogil:
    cdef real most = FLT_MAX if real is float else DBL_MAX
    return most if most < x else x


cdef inline real between(real low, real x, real high) noexcept nogil:
    cdef real raised = low if x < low else x
    return high if raised > high else raised


cdef inline real towards(real x, real target, real rate) noexcept nogil:
    return x + (target - x) * rate


cdef inline real blend(real keep, real x, real take, real y) noexcept nogil:
    return keep * x + take * y


cdef inline real mean_square(real keep, real v, real take, real x) noexcept nogil:
    # Infinite where x * x overflows, and then for ever: the step is 0. The form of `towards` would give NaN.
    return keep * v + take * x * x


cdef inline real scaled(real x, real second, real by_v, real epsilon) noexcept nogil:
    return x / (by_v * root(second) + epsilon)


cdef void gradient_descent(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real rate = c[0]
    for i in range(n):
        w[i] = w[i] - rate * g[i]


cdef void momentum(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real first, keep = c[0], take = c[1], by_m = c[2], by_g = c[3]
    cdef real* m = slots[0]
    for i in range(n):
        first = blend(keep, m[i], take, g[i])
        m[i] = flush(first)
        w[i] = w[i] + by_m * first + by_g * g[i]


cdef void sign_momentum(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real ahead, keep_ahead = c[0], take_ahead = c[1], keep = c[2], take = c[3], rate = c[4]
    cdef real* m = slots[0]
    for i in range(n):
        ahead = blend(keep_ahead, m[i], take_ahead, g[i])
        m[i] = flush(blend(keep, m[i], take, g[i]))
        w[i] = w[i] - rate * sign(ahead)


cdef void adam(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real first, second, rate_1 = c[0], keep = c[1], take = c[2]
    cdef real by_m = c[3], by_g = c[4], by_v = c[5], epsilon = c[6]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    for i in range(n):
        first = towards(m[i], g[i], rate_1)
        second = mean_square(keep, v[i], take, g[i])
        m[i] = flush(first)
        v[i] = flush(second)
        w[i] = w[i] - scaled(blend(by_m, first, by_g, g[i]), second, by_v, epsilon)


cdef void radam(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real first, second, rate_1 = c[0], keep = c[1], take = c[2], by_m = c[3], by_ratio = c[4], epsilon = c[5]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    for i in range(n):
        first = towards(m[i], g[i], rate_1)
        second = mean_square(keep, v[i], take, g[i])
        m[i] = flush(first)
        v[i] = flush(second)
        w[i] = w[i] - (by_m * first + scaled(by_ratio * first, second, <real> 1, epsilon))


cdef void amsgrad(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real first, second, rate_1 = c[0], keep = c[1], take = c[2]
    cdef real by_m = c[3], by_g = c[4], by_v = c[5], epsilon = c[6]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    cdef real* peak = slots[2]
    for i in range(n):
        first = towards(m[i], g[i], rate_1)
        second = flush(mean_square(keep, v[i], take, g[i]))
        m[i] = flush(first)
        v[i] = second
        peak[i] = larger(peak[i], second)
        w[i] = w[i] - scaled(blend(by_m, first, by_g, g[i]), peak[i], by_v, epsilon)


cdef void adabelief(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real first, second, error, keep_1 = c[0], take_1 = c[1], keep_2 = c[2], take_2 = c[3]
    cdef real rate = c[4], by_v = c[5], epsilon = c[6], inside = c[7]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    for i in range(n):
        first = blend(keep_1, m[i], take_1, g[i])
        error = g[i] - first
        second = mean_square(keep_2, v[i], take_2, error) + inside
        m[i] = flush(first)
        v[i] = flush(second)
        w[i] = w[i] - scaled(rate * first, second, by_v, epsilon)


cdef void yogi(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real first, second, square, step, keep = c[0], take = c[1], rate_2 = c[2]
    cdef real rate = c[3], by_v = c[4], epsilon = c[5]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    for i in range(n):
        first = blend(keep, m[i], take, g[i])
        square = g[i] * g[i]
        step = rate_2 * square
        second = v[i] if v[i] == square else v[i] - step if v[i] > square else v[i] + step
        m[i] = flush(first)
        v[i] = flush(second)
        w[i] = w[i] - scaled(rate * first, second, by_v, epsilon)


cdef void adamax(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real first, norm, rate_1 = c[0], keep = c[1], rate = c[2], inside = c[3], outside = c[4]
    cdef real* m = slots[0]
    cdef real* u = slots[1]
    for i in range(n):
        first = towards(m[i], g[i], rate_1)
        norm = larger(magnitude(g[i]) + inside, keep * u[i])
        m[i] = flush(first)
        u[i] = flush(norm)
        w[i] = w[i] - rate * first / (norm + outside)


cdef void ademamix(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real first, slow, second, keep_1 = c[0], take_1 = c[1], keep_slow = c[2], take_slow = c[3]
    cdef real keep_2 = c[4], take_2 = c[5], by_m = c[6], by_slow = c[7], by_v = c[8], epsilon = c[9]
    cdef real* m = slots[0]
    cdef real* old = slots[1]
    cdef real* v = slots[2]
    for i in range(n):
        first = blend(keep_1, m[i], take_1, g[i])
        slow = blend(keep_slow, old[i], take_slow, g[i])
        second = mean_square(keep_2, v[i], take_2, g[i])
        m[i] = flush(first)
        old[i] = flush(slow)
        v[i] = flush(second)
        w[i] = w[i] - scaled(blend(by_m, first, by_slow, slow), second, by_v, epsilon)


cdef void adan(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real first, drift, second, change, ahead, keep_1 = c[0], take_1 = c[1], keep_d = c[2], take_d = c[3]
    cdef real keep_2 = c[4], take_2 = c[5], begun = c[6], lead = c[7]
    cdef real by_m = c[8], by_d = c[9], by_v = c[10], epsilon = c[11], inside = c[12]
    cdef real* m = slots[0]
    cdef real* d = slots[1]
    cdef real* v = slots[2]
    cdef real* previous = slots[3]
    for i in range(n):
        change = begun * (g[i] - previous[i])
        ahead = g[i] + lead * change
        first = blend(keep_1, m[i], take_1, g[i])
        drift = blend(keep_d, d[i], take_d, change)
        second = mean_square(keep_2, v[i], take_2, ahead)
        m[i] = flush(first)
        d[i] = flush(drift)
        v[i] = flush(second)
        w[i] = w[i] - scaled(blend(by_m, first, by_d, drift), second + inside, by_v, epsilon)
        previous[i] = g[i]


cdef void adopt(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real first, step, keep_1 = c[0], take_1 = c[1], keep_2 = c[2], take_2 = c[3]
    cdef real rate = c[4], epsilon = c[5], limit = c[6]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    for i in range(n):
        step = between(-limit, g[i] / larger(root(v[i]), epsilon), limit)
        first = blend(keep_1, m[i], take_1, step)
        m[i] = flush(first)
        v[i] = flush(mean_square(keep_2, v[i], take_2, g[i]))
        w[i] = w[i] - rate * first


cdef void schedule_free(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real fast, second, keep_2 = c[0], take_2 = c[1], rate = c[2], by_v = c[3], epsilon = c[4]
    cdef real keep = c[5], less = c[6], take = c[7]
    cdef real* z = slots[0]
    cdef real* v = slots[1]
    for i in range(n):
        second = mean_square(keep_2, v[i], take_2, g[i])
        fast = z[i] - scaled(rate * g[i], second, by_v, epsilon)
        w[i] = blend(keep, w[i] - less * z[i], take, fast)
        z[i] = fast
        v[i] = flush(second)


cdef void rmsprop(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real second, keep = c[0], take = c[1], rate = c[2], inside = c[3], outside = c[4]
    cdef real* v = slots[0]
    for i in range(n):
        second = mean_square(keep, v[i], take, g[i])
        v[i] = flush(second)
        w[i] = w[i] - scaled(rate * g[i], second + inside, <real> 1, outside)


cdef void rmsprop_momentum(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real second, first, keep = c[0], take = c[1], rate = c[2], inside = c[3], outside = c[4]
    cdef real mu = c[5], by_m = c[6]
    cdef real* v = slots[0]
    cdef real* m = slots[1]
    for i in range(n):
        second = mean_square(keep, v[i], take, g[i])
        first = mu * m[i] + scaled(rate * g[i], second + inside, <real> 1, outside)
        v[i] = flush(second)
        m[i] = flush(first)
        w[i] = w[i] - by_m * first


cdef void rmsprop_centered(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real second, mean, spread, first, keep = c[0], take = c[1], rate = c[2], inside = c[3], outside = c[4]
    cdef real mu = c[5], by_m = c[6]
    cdef real* v = slots[0]
    cdef real* m = slots[1]
    cdef real* average = slots[2]
    for i in range(n):
        second = mean_square(keep, v[i], take, g[i])
        mean = blend(keep, average[i], take, g[i])
        spread = larger(second - finite(mean * mean), <real> 0)  # which rounding can make negative
        first = mu * m[i] + scaled(rate * g[i], spread + inside, <real> 1, outside)
        v[i] = flush(second)
        m[i] = flush(first)
        average[i] = flush(mean)
        w[i] = w[i] - by_m * first


cdef void adadelta(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real second, step, keep = c[0], take = c[1], rate = c[2], epsilon = c[3]
    cdef real* v = slots[0]
    cdef real* d = slots[1]
    for i in range(n):
        second = mean_square(keep, v[i], take, g[i])
        step = root(d[i] + epsilon) * g[i] / root(second + epsilon)
        v[i] = flush(second)
        d[i] = flush(mean_square(keep, d[i], take, step))
        w[i] = w[i] - rate * step


cdef void ftrl(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real total, before, after, z, per_rate = c[0], limit = c[1], curvature = c[2], shrinkage = c[3]
    cdef real* accumulator = slots[0]
    cdef real* linear = slots[1]
    for i in range(n):
        total = accumulator[i] + g[i] * g[i]
        before = root(accumulator[i])
        after = root(total)
        z = linear[i] + (g[i] + shrinkage * w[i] - (after - before) * per_rate * w[i])
        accumulator[i] = total
        linear[i] = z
        w[i] = (between(-limit, z, limit) - z) / (after * per_rate + curvature)


cdef void rprop(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real turn, down = c[0], up = c[1], low = c[2], high = c[3]
    cdef real* previous = slots[0]
    cdef real* step = slots[1]
    for i in range(n):
        turn = g[i] * previous[i]
        step[i] = between(low, step[i] * (up if turn > 0 else down if turn < 0 else 1), high)
        previous[i] = 0 if turn < 0 else g[i]
        w[i] = w[i] - sign(previous[i]) * step[i]


cdef void asgd(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real rate = c[0], shrinkage = c[1], keep = c[2], take = c[3]
    cdef real* average = slots[0]
    for i in range(n):
        w[i] = shrinkage * w[i] - rate * g[i]
        average[i] = blend(keep, average[i], take, w[i])


register("gradient_descent", gradient_descent[float], gradient_descent[double], slots=0, scalars=1)
register("momentum", momentum[float], momentum[double], slots=1, scalars=4)
register("sign_momentum", sign_momentum[float], sign_momentum[double], slots=1, scalars=5)
register("adam", adam[float], adam[double], slots=2, scalars=7)
register("radam", radam[float], radam[double], slots=2, scalars=6)
register("amsgrad", amsgrad[float], amsgrad[double], slots=3, scalars=7)
register("adabelief", adabelief[float], adabelief[double], slots=2, scalars=8)
register("yogi", yogi[float], yogi[double], slots=2, scalars=6)
register("adamax", adamax[float], adamax[double], slots=2, scalars=5)
register("ademamix", ademamix[float], ademamix[double], slots=3, scalars=10)
register("adan", adan[float], adan[double], slots=4, scalars=13)
register("adopt", adopt[float], adopt[double], slots=2, scalars=7)
register("schedule_free", schedule_free[float], schedule_free[double], slots=2, scalars=8)
register("rmsprop", rmsprop[float], rmsprop[double], slots=1, scalars=5)
register("rmsprop_momentum", rmsprop_momentum[float], rmsprop_momentum[double], slots=2, scalars=7)
register("rmsprop_centered", rmsprop_centered[float], rmsprop_centered[double], slots=3, scalars=7)
register("adadelta", adadelta[float], adadelta[double], slots=2, scalars=4)
register("ftrl", ftrl[float], ftrl[double], slots=2, scalars=4)
register("rprop", rprop[float], rprop[double], slots=2, scalars=4)
register("asgd", asgd[float], asgd[double], slots=1, scalars=4)
