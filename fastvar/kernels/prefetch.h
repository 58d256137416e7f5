/* Prefetching, where the compiler has it. The empty statement keeps it: GCC takes a function that only prefetches for
   one without effects, and leaves calls of it out. */
#ifndef FASTVAR_PREFETCH_H
#define FASTVAR_PREFETCH_H

#ifdef __GNUC__
#define prefetch(address) do { __builtin_prefetch(address, 1); __asm__ volatile(""); } while (0) /* to write it */
#define prefetch_read(address) do { __builtin_prefetch(address, 0); __asm__ volatile(""); } while (0)
#else
#define prefetch(address) ((void)(address))
#define prefetch_read(address) ((void)(address))
#endif

#endif
