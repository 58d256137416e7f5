/* Prefetching, where the compiler has it. */
#ifndef FASTVAR_PREFETCH_H
#define FASTVAR_PREFETCH_H

#ifdef __GNUC__
#define prefetch(address) __builtin_prefetch(address, 1) /* to write it */
#define prefetch_read(address) __builtin_prefetch(address, 0)
#else
#define prefetch(address) ((void)(address))
#define prefetch_read(address) ((void)(address))
#endif

#endif
