/* The traffic limit: the least memory traffic of a fused update. Every array that the update writes is read and
   written once. The gradient is read once. Before that, what the update sums first is read: the gradient for
   clipping by norm, more for other norms. Threads and elements are as many as in the update. One addition per element
   keeps the compiler from leaving anything out. What a real update computes beyond that can at best overlap with the
   traffic.

   The limit of arithmetic: the square roots and divisions of a rule, on numbers in the fastest cache. Some processors
   take 20 cycles for one of each, for a vector. In cache, that may take longer than the traffic.

   limit.py compiles this with -Dreal=float and with -Dreal=double. Each number of arrays has a loop of its own:
   all arrays side by side were the fastest of the ways tried (one array after the other, in blocks, took up to a
   third longer). */

#include <math.h>
#include <stddef.h>

enum { LINE = 16, LANES = 64, PAGE = 1024, MOST_THREADS = 256, SERIAL = 1 << 15 /* with fewer elements, threads do not pay */ };

/* Where part k of n elements begins: at a multiple of LINE, so that threads share no cache line. */
static ptrdiff_t part(ptrdiff_t n, ptrdiff_t k, int threads)
{
    return k == threads ? n : n / LINE * k / threads * LINE;
}

static void touch(real *const *arrays, int count, const real *restrict g, ptrdiff_t i, ptrdiff_t end)
{
    real *restrict a = arrays[0], *restrict b = arrays[1], *restrict c = arrays[2];
    real *restrict d = arrays[3], *restrict e = arrays[4];
    switch (count) {
    case 1: for (; i < end; i++) { a[i] += g[i]; } break;
    case 2: for (; i < end; i++) { a[i] += g[i]; b[i] += g[i]; } break;
    case 3: for (; i < end; i++) { a[i] += g[i]; b[i] += g[i]; c[i] += g[i]; } break;
    case 4: for (; i < end; i++) { a[i] += g[i]; b[i] += g[i]; c[i] += g[i]; d[i] += g[i]; } break;
    case 5: for (; i < end; i++) { a[i] += g[i]; b[i] += g[i]; c[i] += g[i]; d[i] += g[i]; e[i] += g[i]; } break;
    }
}

/* Side by side here means in turn, a page of each. */
static double sum(const real *const *read, int count, ptrdiff_t i, ptrdiff_t end)
{
    real lanes[LANES] = {0}; /* independent sums: a single one would wait for each addition */
    double total = 0;
    for (; i + PAGE <= end; i += PAGE)
        for (int a = 0; a < count; a++)
            for (ptrdiff_t j = i; j < i + PAGE; j += LANES)
                for (int k = 0; k < LANES; k++) lanes[k] += read[a][j + k];
    for (int a = 0; a < count; a++)
        for (ptrdiff_t j = i; j + LANES <= end; j += LANES)
            for (int k = 0; k < LANES; k++) lanes[k] += read[a][j + k];
    for (int k = 0; k < LANES; k++) total += lanes[k];
    return total;
}

typedef struct {
    real *const *arrays;
    int count;
    const real *g;
    const real *const *read;
    int read_count;
    ptrdiff_t n;
    int threads;
    double totals[MOST_THREADS];
} Pass;

static void sum_part(void *context, ptrdiff_t k)
{
    Pass *p = context;
    p->totals[k] += sum(p->read, p->read_count, part(p->n, k, p->threads), part(p->n, k + 1, p->threads));
}

static void touch_part(void *context, ptrdiff_t k)
{
    Pass *p = context;
    touch(p->arrays, p->count, p->g, part(p->n, k, p->threads), part(p->n, k + 1, p->threads));
}

/* fastvar's own threads, see crew.pxd. */
typedef void (*Share)(void (*job)(void *context, ptrdiff_t task), void *context, ptrdiff_t tasks, int threads);

/* `arrays`: five pointers; the first `count` are used. `read`: what is read first, `read_count` pointers. The sum is
   returned so that it is not optimised away. */
double limit(real *const *arrays, int count, const real *g, const real *const *read, int read_count, ptrdiff_t n,
             int threads, long repeat, Share share)
{
    threads = n < SERIAL ? 1 : threads; /* they cost more than a small array */
    Pass pass = {arrays, count, g, read, read_count, n, threads, {0}};
    while (repeat-- > 0) {
        if (read_count) share(sum_part, &pass, pass.threads, pass.threads);
        share(touch_part, &pass, pass.threads, pass.threads);
    }
    return pass.totals[0];
}

typedef struct {
    int roots, divisions;
    ptrdiff_t n;
    int threads;
    double totals[MOST_THREADS];
} Work;

/* Roots and divisions alternate, as they share a unit of the processor. */
static void work_part(void *context, ptrdiff_t k)
{
    Work *p = context;
    real x[PAGE];
    ptrdiff_t n = part(p->n, k + 1, p->threads) - part(p->n, k, p->threads);
    int both = p->roots < p->divisions ? p->roots : p->divisions;
    for (int i = 0; i < PAGE; i++) x[i] = (real) 0.5 + i / (real) PAGE;
    for (ptrdiff_t at = 0; at < n; at += PAGE) {
        ptrdiff_t end = n - at < PAGE ? n - at : PAGE;
        for (int m = 0; m < both; m++)
            for (ptrdiff_t i = 0; i < end; i++) x[i] = (real) 1.5 / (sizeof(real) == 4 ? sqrtf(x[i]) : sqrt(x[i]));
        for (int m = both; m < p->roots; m++)
            for (ptrdiff_t i = 0; i < end; i++) x[i] = sizeof(real) == 4 ? sqrtf(x[i]) : sqrt(x[i]);
        for (int m = both; m < p->divisions; m++)
            for (ptrdiff_t i = 0; i < end; i++) x[i] = (real) 1.5 / x[i];
    }
    p->totals[k] += x[0];
}

double arithmetic(int roots, int divisions, ptrdiff_t n, int threads, long repeat, Share share)
{
    threads = n < SERIAL ? 1 : threads;
    Work work = {roots, divisions, n, threads, {0}};
    while (repeat-- > 0) share(work_part, &work, work.threads, work.threads);
    return work.totals[0];
}
