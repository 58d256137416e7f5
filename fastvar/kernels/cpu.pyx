# cython: freethreading_compatible = True
"""Find the instruction sets of this processor. Compiled for the oldest one, so that it runs anywhere."""

cdef extern from *:
    """
    #if defined(_MSC_VER) && defined(_M_X64)
    #include <intrin.h>
    static int fv_cpu(int ebx_bits) {  /* leaf 7, if the system saves the registers (xgetbv) */
        int r[4];
        unsigned long long state = ebx_bits == 0x20 ? 0x6 : 0xe6;
        __cpuid(r, 1);
        if (!(r[2] & (1 << 27)) || (_xgetbv(0) & state) != state) return 0;
        __cpuidex(r, 7, 0);
        return (r[1] & ebx_bits) == ebx_bits;
    }
    #define FV_AVX2() fv_cpu(0x20)
    #define FV_AVX512() fv_cpu(0x10000 | 0x20000 | 0x40000000 | (int)0x80000000)
    #elif defined(__x86_64__)
    #define FV_AVX2() (__builtin_cpu_supports("avx2") != 0)
    #define FV_AVX512() (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") \\
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    #else
    #define FV_AVX2() 0
    #define FV_AVX512() 0
    #endif
    """
    bint FV_AVX2()
    bint FV_AVX512()


def supported():
    """Return the names of the instruction sets that this processor runs, the best one last."""
    return ["baseline"] + ["avx2"] * FV_AVX2() + ["avx512"] * FV_AVX512()
