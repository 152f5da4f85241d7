// Whatever the compiler may assume of every machine of this architecture: SSE2, or NEON.
#include "std.h"

#define BYTES 16
#if defined(__aarch64__)
#define REGISTERS 32
#define KEEP(a) asm volatile("" : "+w"(a))
#else
#define REGISTERS 16
#define KEEP(a) asm volatile("" : "+x"(a))
#endif
#define NAME portable
#include "kernels.h"
