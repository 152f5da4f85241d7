// From a call to the kernel that fits its rows: as wide as they are or up to twice, with as many of them a thread as it has
// registers for.
#include "attention.cuh"

namespace {

using namespace xfn;

// F, D, N: queries a thread of the forward and of their gradients, and keys a thread of theirs.
template <int W, int F, int D, int N> int launch(const Call& p, Member member, void* stream) {
  const auto blocks = [&](int64_t heads, int64_t lines, int64_t each) {
    return p.B * heads * ((lines + THREADS * each - 1) / (THREADS * each));
  };
  switch (member) {
    case Member::forward:
      return start(attend<W, F>, p, blocks(p.H, p.M, F), stream);
    case Member::queries:
      return start(by_queries<W, D>, p, blocks(p.H, p.M, D), stream);
    default:
      return start(by_keys<W, N>, p, blocks(p.G, p.N, N), stream);
  }
}

}  // namespace

extern "C" int xfn_cuda_attend(const Call* call, Member member, void* stream) {
  const int64_t widest = std::max(call->K, call->V);
  if (widest <= 4) return launch<4, 4, 4, 2>(*call, member, stream);
  if (widest <= 8) return launch<8, 4, 4, 2>(*call, member, stream);
  if (widest <= 16) return launch<16, 2, 2, 2>(*call, member, stream);
  if (widest <= 32) return launch<32, 2, 1, 1>(*call, member, stream);
  return (int)cudaErrorInvalidValue;
}
