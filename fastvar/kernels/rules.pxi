# Every update rule, once. A rule is the published recurrence over one contiguous block and nothing else.
#
#     rule(w, g, slots, n, c)      w: weights, g: gradient, slots: state arrays, n: elements, c: scalars
#
# The optimizer class computes the scalars once per step in double precision (bias corrections, products with the
# learning rate, ...), so that one rule serves several published forms.
#
# reference.py holds the NumPy twin of every rule. The twin declares the names of slots and scalars; a rule reads
# them here under the same names, in the same order (tests/kernels/test_scalars.py compares them). Both must agree
# bit for bit: use the same operations in the same order, and only + - * / sqrt and comparisons.
#
# Names: keep and take are the factors of the old and the new value in a running mean; scale_x is a factor of x.


cdef inline real root(real x) noexcept nogil:
    return sqrtf(x) if real is float else sqrt(x)


cdef inline real absolute(real x) noexcept nogil:
    if real is float:
        return fabsf(x)
    else:
        return fabs(x)


cdef inline real flush(real x) noexcept nogil:
    # Moments of a dead unit decay into denormals, which cost 2 to 4 times as much. Store 0 before that: as long as
    # 0.0001 * x, the next product of x, is a normal number. NaN passes. The step uses the moment before it is
    # flushed, which keeps this off the critical path to the division.
    if real is float:
        return 0 if absolute(x) < TINY_F32 else x
    else:
        return 0 if absolute(x) < TINY_F64 else x


cdef inline real sign(real x) noexcept nogil:
    cdef real up_to_0 = -1 if x < 0 else x  # two selects in turn: nested, GCC makes twice the comparisons
    return 1 if x > 0 else up_to_0  # NaN stays NaN, here and below


cdef inline real maximum(real x, real other) noexcept nogil:
    return other if other > x else x


cdef inline real minimum(real x, real other) noexcept nogil:
    return other if other < x else x


cdef inline real saturate(real x) noexcept nogil:
    cdef real most = FLT_MAX if real is float else DBL_MAX
    return most if most < x else x


cdef inline real clamp(real x, real low, real high) noexcept nogil:
    cdef real raised = low if x < low else x
    return high if raised > high else raised


cdef inline real lerp(real x, real target, real weight) noexcept nogil:
    return x + (target - x) * weight


cdef inline real axpby(real a, real x, real b, real y) noexcept nogil:
    return a * x + b * y


cdef inline real mean_square(real keep, real v, real take, real x) noexcept nogil:
    # Where x * x overflows, the result is infinite and stays so: the step is 0. The form of `lerp` would give NaN.
    return keep * v + take * x * x


cdef inline real over_root(real x, real second, real scale_root, real epsilon) noexcept nogil:
    return x / (scale_root * root(second) + epsilon)


cdef void gradient_descent(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real rate = c[0]
    cdef Py_ssize_t i
    for i in range(n):
        w[i] = w[i] - rate * g[i]


cdef void momentum(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep = c[0], take = c[1], scale_m = c[2], scale_g = c[3]
    cdef real* m = slots[0]
    cdef real first
    cdef Py_ssize_t i
    for i in range(n):
        first = axpby(keep, m[i], take, g[i])
        m[i] = flush(first)
        w[i] = w[i] + scale_m * first + scale_g * g[i]


cdef void sign_momentum(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep_ahead = c[0], take_ahead = c[1], keep = c[2], take = c[3], rate = c[4]
    cdef real* m = slots[0]
    cdef real ahead
    cdef Py_ssize_t i
    for i in range(n):
        ahead = axpby(keep_ahead, m[i], take_ahead, g[i])
        m[i] = flush(axpby(keep, m[i], take, g[i]))
        w[i] = w[i] - rate * sign(ahead)


cdef void adam(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real take_1 = c[0], keep_2 = c[1], take_2 = c[2], scale_m = c[3], scale_g = c[4]
    cdef real scale_root = c[5], epsilon = c[6]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    cdef real first, second
    cdef Py_ssize_t i
    for i in range(n):
        first = lerp(m[i], g[i], take_1)
        second = mean_square(keep_2, v[i], take_2, g[i])
        m[i] = flush(first)
        v[i] = flush(second)
        w[i] = w[i] - over_root(axpby(scale_m, first, scale_g, g[i]), second, scale_root, epsilon)


cdef void adam_direction(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real take_1 = c[0], keep_2 = c[1], take_2 = c[2], scale_m = c[3], scale_g = c[4]
    cdef real scale_root = c[5], epsilon = c[6]
    cdef const real* m = slots[0]
    cdef const real* v = slots[1]
    cdef real first, second
    cdef Py_ssize_t i
    for i in range(n):
        first = lerp(m[i], g[i], take_1)
        second = mean_square(keep_2, v[i], take_2, g[i])
        w[i] = w[i] - over_root(axpby(scale_m, first, scale_g, g[i]), second, scale_root, epsilon)


cdef void prodigy_total(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep = c[0], take = c[1]
    cdef const real* total = slots[0]
    cdef Py_ssize_t i
    for i in range(n):
        w[i] = flush(axpby(keep, total[i], take, g[i]))


cdef void prodigy(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep = c[0], take = c[1], distance = c[2], take_1 = c[3], keep_2 = c[4], take_2 = c[5]
    cdef real scale_m = c[6], epsilon = c[7]
    cdef real* total = slots[0]
    cdef real* m = slots[1]
    cdef real* v = slots[2]
    cdef real x, first, second
    cdef Py_ssize_t i
    for i in range(n):
        total[i] = flush(axpby(keep, total[i], take, g[i]))
        x = distance * g[i]
        first = lerp(m[i], x, take_1)
        second = mean_square(keep_2, v[i], take_2, x)
        m[i] = flush(first)
        v[i] = flush(second)
        w[i] = w[i] - over_root(scale_m * first, second, <real> 1, epsilon)


cdef void radam(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real take_1 = c[0], keep_2 = c[1], take_2 = c[2], scale_m = c[3], scale_ratio = c[4]
    cdef real epsilon = c[5]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    cdef real first, second
    cdef Py_ssize_t i
    for i in range(n):
        first = lerp(m[i], g[i], take_1)
        second = mean_square(keep_2, v[i], take_2, g[i])
        m[i] = flush(first)
        v[i] = flush(second)
        w[i] = w[i] - (scale_m * first + over_root(scale_ratio * first, second, <real> 1, epsilon))


cdef void amsgrad(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real take_1 = c[0], keep_2 = c[1], take_2 = c[2], scale_m = c[3], scale_g = c[4]
    cdef real scale_root = c[5], epsilon = c[6]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    cdef real* peak = slots[2]
    cdef real first, second
    cdef Py_ssize_t i
    for i in range(n):
        first = lerp(m[i], g[i], take_1)
        second = flush(mean_square(keep_2, v[i], take_2, g[i]))
        m[i] = flush(first)
        v[i] = second
        peak[i] = maximum(peak[i], second)
        w[i] = w[i] - over_root(axpby(scale_m, first, scale_g, g[i]), peak[i], scale_root, epsilon)


cdef void adabelief(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep_1 = c[0], take_1 = c[1], keep_2 = c[2], take_2 = c[3], rate = c[4]
    cdef real scale_root = c[5], epsilon = c[6], epsilon_root = c[7]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    cdef real first, second, error
    cdef Py_ssize_t i
    for i in range(n):
        first = axpby(keep_1, m[i], take_1, g[i])
        error = g[i] - first
        second = mean_square(keep_2, v[i], take_2, error) + epsilon_root
        m[i] = flush(first)
        v[i] = flush(second)
        w[i] = w[i] - over_root(rate * first, second, scale_root, epsilon)


cdef void yogi(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep_1 = c[0], take_1 = c[1], take_2 = c[2], rate = c[3], scale_root = c[4]
    cdef real epsilon = c[5]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    cdef real first, second, square, step
    cdef Py_ssize_t i
    for i in range(n):
        first = axpby(keep_1, m[i], take_1, g[i])
        square = g[i] * g[i]
        step = take_2 * square
        second = v[i] if v[i] == square else v[i] - step if v[i] > square else v[i] + step
        m[i] = flush(first)
        v[i] = flush(second)
        w[i] = w[i] - over_root(rate * first, second, scale_root, epsilon)


cdef void adamax(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real take_1 = c[0], keep = c[1], rate = c[2], epsilon_g = c[3], epsilon = c[4]
    cdef real* m = slots[0]
    cdef real* u = slots[1]
    cdef real first, norm
    cdef Py_ssize_t i
    for i in range(n):
        first = lerp(m[i], g[i], take_1)
        norm = maximum(absolute(g[i]) + epsilon_g, keep * u[i])
        m[i] = flush(first)
        u[i] = flush(norm)
        w[i] = w[i] - rate * first / (norm + epsilon)


cdef void ademamix(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep_1 = c[0], take_1 = c[1], keep_slow = c[2], take_slow = c[3], keep_2 = c[4]
    cdef real take_2 = c[5], scale_m = c[6], scale_slow = c[7], scale_root = c[8], epsilon = c[9]
    cdef real* m = slots[0]
    cdef real* m_slow = slots[1]
    cdef real* v = slots[2]
    cdef real first, slow, second
    cdef Py_ssize_t i
    for i in range(n):
        first = axpby(keep_1, m[i], take_1, g[i])
        slow = axpby(keep_slow, m_slow[i], take_slow, g[i])
        second = mean_square(keep_2, v[i], take_2, g[i])
        m[i] = flush(first)
        m_slow[i] = flush(slow)
        v[i] = flush(second)
        w[i] = w[i] - over_root(axpby(scale_m, first, scale_slow, slow), second, scale_root, epsilon)


cdef void adan(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep_1 = c[0], take_1 = c[1], keep_d = c[2], take_d = c[3], keep_2 = c[4]
    cdef real take_2 = c[5], scale_change = c[6], lookahead = c[7], scale_m = c[8], scale_d = c[9]
    cdef real scale_root = c[10], epsilon = c[11], epsilon_root = c[12]
    cdef real* m = slots[0]
    cdef real* d = slots[1]
    cdef real* v = slots[2]
    cdef real* previous = slots[3]
    cdef real first, drift, second, change, ahead
    cdef Py_ssize_t i
    for i in range(n):
        change = scale_change * (g[i] - previous[i])
        ahead = g[i] + lookahead * change
        first = axpby(keep_1, m[i], take_1, g[i])
        drift = axpby(keep_d, d[i], take_d, change)
        second = mean_square(keep_2, v[i], take_2, ahead)
        m[i] = flush(first)
        d[i] = flush(drift)
        v[i] = flush(second)
        w[i] = w[i] - over_root(axpby(scale_m, first, scale_d, drift), second + epsilon_root, scale_root, epsilon)
        previous[i] = g[i]


cdef void adopt(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep_1 = c[0], take_1 = c[1], keep_2 = c[2], take_2 = c[3], rate = c[4]
    cdef real epsilon = c[5], limit = c[6]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    cdef real first, step
    cdef Py_ssize_t i
    for i in range(n):
        step = clamp(g[i] / maximum(root(v[i]), epsilon), -limit, limit)
        first = axpby(keep_1, m[i], take_1, step)
        m[i] = flush(first)
        v[i] = flush(mean_square(keep_2, v[i], take_2, g[i]))
        w[i] = w[i] - rate * first


cdef void schedule_free(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep_2 = c[0], take_2 = c[1], rate = c[2], scale_root = c[3], epsilon = c[4]
    cdef real keep = c[5], share_z = c[6], take = c[7]
    cdef real* z = slots[0]
    cdef real* v = slots[1]
    cdef real fast, second
    cdef Py_ssize_t i
    for i in range(n):
        second = mean_square(keep_2, v[i], take_2, g[i])
        fast = z[i] - over_root(rate * g[i], second, scale_root, epsilon)
        w[i] = axpby(keep, w[i] - share_z * z[i], take, fast)
        z[i] = fast
        v[i] = flush(second)


cdef void rmsprop(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep = c[0], take = c[1], rate = c[2], epsilon_root = c[3], epsilon = c[4]
    cdef real* v = slots[0]
    cdef real second
    cdef Py_ssize_t i
    for i in range(n):
        second = mean_square(keep, v[i], take, g[i])
        v[i] = flush(second)
        w[i] = w[i] - over_root(rate * g[i], second + epsilon_root, <real> 1, epsilon)


cdef void rmsprop_momentum(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep = c[0], take = c[1], rate = c[2], epsilon_root = c[3], epsilon = c[4]
    cdef real keep_m = c[5], scale_m = c[6]
    cdef real* v = slots[0]
    cdef real* m = slots[1]
    cdef real second, first
    cdef Py_ssize_t i
    for i in range(n):
        second = mean_square(keep, v[i], take, g[i])
        first = keep_m * m[i] + over_root(rate * g[i], second + epsilon_root, <real> 1, epsilon)
        v[i] = flush(second)
        m[i] = flush(first)
        w[i] = w[i] - scale_m * first


cdef void rmsprop_centered(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep = c[0], take = c[1], rate = c[2], epsilon_root = c[3], epsilon = c[4]
    cdef real keep_m = c[5], scale_m = c[6]
    cdef real* v = slots[0]
    cdef real* m = slots[1]
    cdef real* average = slots[2]
    cdef real second, mean, spread, first
    cdef Py_ssize_t i
    for i in range(n):
        second = mean_square(keep, v[i], take, g[i])
        mean = axpby(keep, average[i], take, g[i])
        spread = maximum(second - saturate(mean * mean), <real> 0)  # rounding can make it negative
        first = keep_m * m[i] + over_root(rate * g[i], spread + epsilon_root, <real> 1, epsilon)
        v[i] = flush(second)
        m[i] = flush(first)
        average[i] = flush(mean)
        w[i] = w[i] - scale_m * first


cdef void adadelta(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real keep = c[0], take = c[1], rate = c[2], epsilon = c[3]
    cdef real* v = slots[0]
    cdef real* d = slots[1]
    cdef real second, step
    cdef Py_ssize_t i
    for i in range(n):
        second = mean_square(keep, v[i], take, g[i])
        step = root(d[i] + epsilon) * g[i] / root(second + epsilon)
        v[i] = flush(second)
        d[i] = flush(mean_square(keep, d[i], take, step))
        w[i] = w[i] - rate * step


cdef void ftrl(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real inverse_rate = c[0], limit = c[1], curvature = c[2], shrinkage = c[3]
    cdef real* accumulator = slots[0]
    cdef real* linear = slots[1]
    cdef real total, before, after, z
    cdef Py_ssize_t i
    for i in range(n):
        total = accumulator[i] + g[i] * g[i]
        before = root(accumulator[i])
        after = root(total)
        z = linear[i] + (g[i] + shrinkage * w[i] - (after - before) * inverse_rate * w[i])
        accumulator[i] = total
        linear[i] = z
        w[i] = (clamp(z, -limit, limit) - z) / (after * inverse_rate + curvature)


cdef void rprop(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real down = c[0], up = c[1], low = c[2], high = c[3]
    cdef real* previous = slots[0]
    cdef real* step = slots[1]
    cdef real turn
    cdef Py_ssize_t i
    for i in range(n):
        turn = g[i] * previous[i]
        step[i] = clamp(step[i] * (up if turn > 0 else down if turn < 0 else 1), low, high)
        previous[i] = 0 if turn < 0 else g[i]
        w[i] = w[i] - sign(previous[i]) * step[i]


cdef void asgd(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef real rate = c[0], shrinkage = c[1], keep = c[2], take = c[3]
    cdef real* average = slots[0]
    cdef Py_ssize_t i
    for i in range(n):
        w[i] = shrinkage * w[i] - rate * g[i]
        average[i] = axpby(keep, average[i], take, w[i])


register("gradient_descent", gradient_descent[float], gradient_descent[double])
register("momentum", momentum[float], momentum[double])
register("sign_momentum", sign_momentum[float], sign_momentum[double])
register("adam", adam[float], adam[double], adam_direction[float], adam_direction[double])
register("prodigy", prodigy[float], prodigy[double], prodigy_total[float], prodigy_total[double])
register("radam", radam[float], radam[double])
register("amsgrad", amsgrad[float], amsgrad[double])
register("adabelief", adabelief[float], adabelief[double])
register("yogi", yogi[float], yogi[double])
register("adamax", adamax[float], adamax[double])
register("ademamix", ademamix[float], ademamix[double])
register("adan", adan[float], adan[double])
register("adopt", adopt[float], adopt[double])
register("schedule_free", schedule_free[float], schedule_free[double])
register("rmsprop", rmsprop[float], rmsprop[double])
register("rmsprop_momentum", rmsprop_momentum[float], rmsprop_momentum[double])
register("rmsprop_centered", rmsprop_centered[float], rmsprop_centered[double])
register("adadelta", adadelta[float], adadelta[double])
register("ftrl", ftrl[float], ftrl[double])
register("rprop", rprop[float], rprop[double])
register("asgd", asgd[float], asgd[double])
