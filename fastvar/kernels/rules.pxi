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


cdef inline real flush(real x) noexcept nogil:
    # Moments of a dead unit decay into denormals, which cost 2 to 4 times as much: store 0 instead while
    # 0.001 * x (the next product taken of x) is still a normal number. NaN passes. The step itself takes the
    # moment as it was: so this stays off the path to the division, which is the slowest part.
    if real is float:
        return 0 if fabsf(x) < TINY_F32 else x
    else:
        return 0 if fabs(x) < TINY_F64 else x


cdef inline real towards(real x, real target, real rate) noexcept nogil:
    return x + (target - x) * rate


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
        first = keep * m[i] + take * g[i]
        m[i] = flush(first)
        w[i] = w[i] + by_m * first + by_g * g[i]


cdef void adam(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real first, second, rate_1 = c[0], rate_2 = c[1], by_m = c[2], by_g = c[3], epsilon = c[4]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    for i in range(n):
        first = towards(m[i], g[i], rate_1)
        second = towards(v[i], g[i] * g[i], rate_2)
        m[i] = flush(first)
        v[i] = flush(second)
        w[i] = w[i] - (by_m * first + by_g * g[i]) / (root(second) + epsilon)


cdef void amsgrad(real* w, const real* g, real** slots, Py_ssize_t n, const real* c) noexcept nogil:
    cdef Py_ssize_t i
    cdef real first, second, rate_1 = c[0], rate_2 = c[1], by_m = c[2], by_g = c[3], epsilon = c[4]
    cdef real* m = slots[0]
    cdef real* v = slots[1]
    cdef real* peak = slots[2]
    for i in range(n):
        first = towards(m[i], g[i], rate_1)
        second = towards(v[i], g[i] * g[i], rate_2)
        m[i] = flush(first)
        v[i] = flush(second)
        peak[i] = second if second > peak[i] else peak[i]
        w[i] = w[i] - (by_m * first + by_g * g[i]) / (root(peak[i]) + epsilon)


register("gradient_descent", gradient_descent[float], gradient_descent[double], slots=0, scalars=1)
register("momentum", momentum[float], momentum[double], slots=1, scalars=4)
register("adam", adam[float], adam[double], slots=2, scalars=5)
register("amsgrad", amsgrad[float], amsgrad[double], slots=3, scalars=5)
