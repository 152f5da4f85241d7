// The best kernels that this machine can run, chosen once; XFN_ISA names a lower set of instructions.
#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace xfn {

const Kernels* portable(Dtype);
#if defined(__x86_64__)
const Kernels* avx2(Dtype);
const Kernels* avx512(Dtype);
const Kernels* avx512bf16(Dtype);
#endif

namespace {

struct Isa {
  const char* name;
  const Kernels* (*kernels)(Dtype);
  bool runs;
};

const Isa& chosen() {
  static const Isa best = [] {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool two = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool five = two && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const Isa all[] = {
        {"avx512bf16", avx512bf16, five && __builtin_cpu_supports("avx512bf16")},
        {"avx512", avx512, five},
        {"avx2", avx2, two},
        {"portable", portable, true},
    };
#else
    const Isa all[] = {{"portable", portable, true}};
#endif
    const char* wanted = std::getenv("XFN_ISA");
    bool reached = !wanted || !*wanted;
    for (const Isa& isa : all) {
      reached |= wanted && !std::strcmp(wanted, isa.name);
      if (reached && isa.runs) return isa;
    }
    return Isa{"unknown", nullptr, false};
  }();
  return best;
}

}  // namespace

bool multiplies() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("amd") && std::strcmp(isa(), "portable");
#else
  return false;
#endif
}
const char* isa() { return chosen().name; }
const Kernels* kernels(Dtype dtype) { return chosen().kernels ? chosen().kernels(dtype) : nullptr; }

}  // namespace xfn
