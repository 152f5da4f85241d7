// AVX-512 with products of bfloat16 pairs.
#if defined(__x86_64__)
#include "std.h"

#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")
#define AVX512
#define AVX512BF16
#define BYTES 64
#define REGISTERS 32
#define KEEP(a) asm volatile("" : "+v"(a))
#define NAME avx512bf16
#include "kernels.h"
#endif
