// From a call to the kernel that fits its dtype, its rows and their width.
#include <algorithm>

#include "sparse.cuh"

namespace {

using namespace xfn;

int warps(void (*kernel)(Call), const Call& call, int64_t tasks, void* stream) {
  return start(kernel, call, (tasks + WARPS - 1) / WARPS, stream);
}

template <class T, int N, int E> int launch(const Call& p, Member member, void* stream) {
  switch (member) {
    case Member::forward:
      return warps(forward<T, N, E>, p, p.B * p.H * p.M, stream);
    case Member::queries:
      return warps(queries<T, N, E>, p, p.B * p.H * p.M, stream);
    case Member::keys:
      return warps(keys<T, N, E>, p, p.B * p.G * p.N, stream);
    case Member::between:
      return warps(between<T, N, E>, p, p.B * p.H * p.M, stream);
    case Member::mix:
      return warps(mix<T, N, E>, p, p.B * p.heads * p.M, stream);
    default:
      return warps(softmax, p, p.B * p.H * p.M, stream);
  }
}

// A lane holds 8 numbers of a row, or where 32 lanes are too few for that, 32; those rows are whole vectors.
template <class T> int launch(Call p, Member member, void* stream) {
  constexpr int N = 16 / sizeof(T), FEW = 8, MANY = 32;
  const int64_t widest = std::max(p.K, p.V);
  for (p.lanes = 1; p.lanes < WARP && p.lanes * FEW < widest;) p.lanes *= 2;
  if (widest <= WARP * FEW)
    return p.aligned ? launch<T, N, FEW>(p, member, stream) : launch<T, 1, FEW>(p, member, stream);
  if (widest > WARP * MANY || !p.aligned) return (int)cudaErrorInvalidValue;
  return launch<T, N, MANY>(p, member, stream);
}

}  // namespace

extern "C" int xfn_cuda_launch(const Call* call, Member member, void* stream) {
  switch (call->type) {
    case Dtype::f32:
      return launch<float>(*call, member, stream);
    case Dtype::f16:
      return launch<__half>(*call, member, stream);
    default:
      return launch<__nv_bfloat16>(*call, member, stream);
  }
}

extern "C" const char* xfn_cuda_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
