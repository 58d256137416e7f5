/* The traffic limit: a loop that only touches the streams that a rule touches. It reads `reads` arrays and
   reads and writes `writes` arrays, adding them up, so that nothing can be left out; what any fused update
   does beyond that is arithmetic, which may at best hide behind the traffic. Compiled by limit.py. */

#include <stddef.h>

#define STREAMS(T, NAME)                                                                      \
    static void NAME##_2(T *restrict a, const T *restrict g, ptrdiff_t n) {                   \
        for (ptrdiff_t i = 0; i < n; i++) a[i] += g[i];                                       \
    }                                                                                         \
    static void NAME##_3(T *restrict a, T *restrict b, const T *restrict g, ptrdiff_t n) {    \
        for (ptrdiff_t i = 0; i < n; i++) { a[i] += g[i]; b[i] += g[i]; }                     \
    }                                                                                         \
    static void NAME##_4(T *restrict a, T *restrict b, T *restrict c, const T *restrict g,    \
                         ptrdiff_t n) {                                                       \
        for (ptrdiff_t i = 0; i < n; i++) { a[i] += g[i]; b[i] += g[i]; c[i] += g[i]; }       \
    }                                                                                         \
    static void NAME##_5(T *restrict a, T *restrict b, T *restrict c, T *restrict d,          \
                         const T *restrict g, ptrdiff_t n) {                                  \
        for (ptrdiff_t i = 0; i < n; i++) {                                                   \
            a[i] += g[i]; b[i] += g[i]; c[i] += g[i]; d[i] += g[i];                           \
        }                                                                                     \
    }                                                                                         \
    static T NAME##_sum(const T *g, ptrdiff_t n) {                                            \
        T lanes[64] = {0}, sum = 0;                                                           \
        for (ptrdiff_t i = 0; i + 64 <= n; i += 64)                                           \
            for (int k = 0; k < 64; k++) lanes[k] += g[i + k];                                \
        for (int k = 0; k < 64; k++) sum += lanes[k];                                         \
        return sum;                                                                           \
    }                                                                                         \
    /* p: `writes` arrays that are updated, then the one that is read; scan: read it once more first */ \
    double NAME(T **p, int writes, int scan, ptrdiff_t n, int threads, int repeat) {          \
        double total = 0;                                                                     \
        for (int r = 0; r < repeat; r++) {                                                    \
            if (scan) {                                                                       \
                _Pragma("omp parallel for num_threads(threads) reduction(+ : total)")         \
                for (int k = 0; k < threads; k++) {                                           \
                    ptrdiff_t lo = n * k / threads, hi = n * (k + 1) / threads;               \
                    total += NAME##_sum(p[writes] + lo, hi - lo);                             \
                }                                                                             \
            }                                                                                 \
            _Pragma("omp parallel for num_threads(threads) if (threads > 1)")                 \
            for (int k = 0; k < threads; k++) {                                               \
                ptrdiff_t lo = n * k / threads / 16 * 16, hi = k + 1 == threads ? n : n * (k + 1) / threads / 16 * 16, m = hi - lo; \
                if (writes == 1) NAME##_2(p[0] + lo, p[1] + lo, m);                           \
                if (writes == 2) NAME##_3(p[0] + lo, p[1] + lo, p[2] + lo, m);                \
                if (writes == 3) NAME##_4(p[0] + lo, p[1] + lo, p[2] + lo, p[3] + lo, m);     \
                if (writes == 4) NAME##_5(p[0] + lo, p[1] + lo, p[2] + lo, p[3] + lo, p[4] + lo, m); \
            }                                                                                 \
        }                                                                                     \
        return total;                                                                         \
    }

STREAMS(float, touch_float32)
STREAMS(double, touch_float64)
