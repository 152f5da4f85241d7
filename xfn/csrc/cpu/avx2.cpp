// AVX2 and FMA.
#if defined(__x86_64__)
#include "std.h"

#pragma GCC target("avx2,fma,f16c,bmi2")
#define F16C
#define BYTES 32
#define REGISTERS 16
#define KEEP(a) asm volatile("" : "+x"(a))
#define NAME avx2
#include "kernels.h"
#endif
