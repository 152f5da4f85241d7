// AVX-512.
#if defined(__x86_64__)
#include "std.h"

#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#define AVX512
#define BYTES 64
#define REGISTERS 32
#define KEEP(a) asm volatile("" : "+v"(a))
#define NAME avx512
#include "kernels.h"
#endif
