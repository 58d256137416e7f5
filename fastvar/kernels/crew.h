/* What crew.pyx needs from the compiler and the system: atomics, and a few properties of threads. */
#ifndef FASTVAR_CREW_H
#define FASTVAR_CREW_H

#include <stdint.h>

#if defined(__GNUC__)
/* FASTVAR_WEAK takes away the order of one access: a mutant for tests/kernels/test_races.py. */
#if defined(FASTVAR_WEAK) && FASTVAR_WEAK == 1
#define FV_ACQUIRE __ATOMIC_RELAXED
#else
#define FV_ACQUIRE __ATOMIC_ACQUIRE
#endif
#if defined(FASTVAR_WEAK) && FASTVAR_WEAK == 2
#define FV_FINISH __ATOMIC_RELAXED
#else
#define FV_FINISH __ATOMIC_SEQ_CST
#endif
static inline uint64_t load_acquire(uint64_t* x) { return __atomic_load_n(x, __ATOMIC_ACQUIRE); }
static inline uint64_t load_relaxed(uint64_t* x) { return __atomic_load_n(x, __ATOMIC_RELAXED); }
static inline uint64_t load_ordered(uint64_t* x) { return __atomic_load_n(x, __ATOMIC_SEQ_CST); }
static inline void store_relaxed(uint64_t* x, uint64_t value) { __atomic_store_n(x, value, __ATOMIC_RELAXED); }
static inline void store_ordered(uint64_t* x, uint64_t value) { __atomic_store_n(x, value, __ATOMIC_SEQ_CST); }
static inline uint64_t exchange(uint64_t* x, uint64_t value) { return __atomic_exchange_n(x, value, __ATOMIC_SEQ_CST); }
static inline uint64_t subtract(uint64_t* x, uint64_t value) { return __atomic_sub_fetch(x, value, FV_FINISH); }
static inline uint64_t add(uint64_t* x, uint64_t value) { return __atomic_add_fetch(x, value, __ATOMIC_SEQ_CST); }
static inline void combine(uint64_t* x, uint64_t bits) { __atomic_fetch_or(x, bits, __ATOMIC_RELAXED); }
static inline int replace(uint64_t* x, uint64_t* expected, uint64_t value) {
    return __atomic_compare_exchange_n(x, expected, value, 0, FV_ACQUIRE, __ATOMIC_RELAXED);
}
#elif defined(_MSC_VER) /* every one is in order */
#include <intrin.h>
static inline uint64_t load_ordered(uint64_t* x) { return (uint64_t) _InterlockedOr64((volatile __int64*) x, 0); }
static inline uint64_t load_acquire(uint64_t* x) { return load_ordered(x); }
static inline uint64_t load_relaxed(uint64_t* x) { return *(volatile uint64_t*) x; }
static inline uint64_t exchange(uint64_t* x, uint64_t value) {
    return (uint64_t) _InterlockedExchange64((volatile __int64*) x, (__int64) value);
}
static inline void store_relaxed(uint64_t* x, uint64_t value) { *(volatile uint64_t*) x = value; }
static inline void store_ordered(uint64_t* x, uint64_t value) { exchange(x, value); }
static inline uint64_t subtract(uint64_t* x, uint64_t value) {
    return (uint64_t) _InterlockedExchangeAdd64((volatile __int64*) x, -(__int64) value) - value;
}
static inline uint64_t add(uint64_t* x, uint64_t value) { return subtract(x, 0 - value); }
static inline void combine(uint64_t* x, uint64_t bits) { _InterlockedOr64((volatile __int64*) x, (__int64) bits); }
static inline int replace(uint64_t* x, uint64_t* expected, uint64_t value) {
    uint64_t found = (uint64_t) _InterlockedCompareExchange64(
        (volatile __int64*) x, (__int64) value, (__int64) *expected);
    int done = found == *expected;
    *expected = found;
    return done;
}
#endif

/* How the processor rounds, and whether it flushes denormals. */
#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
static inline uint64_t rounding(void) { return _mm_getcsr(); }
static inline void set_rounding(uint64_t mode) { _mm_setcsr((unsigned) mode); }
static inline void relax(void) { _mm_pause(); }
#elif defined(__aarch64__)
static inline uint64_t rounding(void) { uint64_t mode; __asm__ volatile("mrs %0, fpcr" : "=r"(mode)); return mode; }
static inline void set_rounding(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
static inline void relax(void) { __asm__ volatile("yield"); }
#else
static inline uint64_t rounding(void) { return 0; }
static inline void set_rounding(uint64_t mode) { (void) mode; }
static inline void relax(void) {}
#endif

#if defined(_WIN32)
#include <windows.h>
static inline int processor(void) { return (int) GetCurrentProcessorNumber(); }
static inline uint64_t nanoseconds(void) {
    LARGE_INTEGER now, rate;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&rate);
    return (uint64_t) ((double) now.QuadPart * 1e9 / (double) rate.QuadPart);
}
static inline void become_helper(void) {}
static inline void after_fork(void (*act)(void)) { (void) act; }
#else
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
/* The oldest version of the one symbol with a newer one, so that a wheel built on a newer system runs on older ones. */
#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver pthread_sigmask, pthread_sigmask@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver pthread_sigmask, pthread_sigmask@GLIBC_2.17");
#endif
static inline uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
}
static inline void after_fork(void (*act)(void)) { pthread_atfork(0, 0, act); }
#if defined(__linux__)
#ifndef SCHED_BATCH
#define SCHED_BATCH 3
#endif
extern int sched_getcpu(void);
static inline int processor(void) { return sched_getcpu(); }
#else
static inline int processor(void) { return -1; }
#endif
static inline void become_helper(void) { /* signals go to other threads; waking it preempts nobody */
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, 0);
#if defined(__linux__)
    struct sched_param none = {0};
    sched_setscheduler(0, SCHED_BATCH, &none);
#endif
}
#endif

#endif
