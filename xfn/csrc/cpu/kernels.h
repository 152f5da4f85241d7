// All kernels of one instruction set. A file that includes this has set its target, BYTES, REGISTERS, KEEP and NAME.
#pragma once

namespace xfn {

#include "vec.h"
#include "gemm.h"
#include "kind.h"
#include "layout.h"
#include "tile.h"
#include "walk.h"
#include "bias.h"
#include "fusion.h"
#include "softmax.h"
#include "dual.h"
#include "forward.h"
#include "few.h"
#include "decode.h"
#include "slope.h"
#include "gradient.h"
#include "tangent.h"
#include "gather.h"
#include "sparse.h"
#include "activation.h"
#include "rows.h"
#include "norm.h"
#include "soften.h"
#include "drop.h"
#include "gate.h"
#include "turn.h"
#include "matmul.h"

namespace {

template <class Kind> size_t task(const Problem& p, Member member, int64_t index, Arena arena) {
  switch (member) {
    case Member::forward:
      return forward<Kind, Rests<Kind>>(p, index, arena);
    case Member::dual:
      return forward<Kind, Moves<Kind>>(p, index, arena);
    case Member::decode:
      return Decode<Kind>(p).run(index, arena);
    case Member::merge:
      return Decode<Kind>(p).merge(index, arena);
    case Member::backward:
      return gradient<Kind, false>(p, index, arena);
    case Member::jvp:
      return tangent<Kind, false>(p, index, arena);
    case Member::hvp:
      return gradient<Kind, true>(p, index, arena);
    case Member::gather:
      return gather<Kind>(p, index, arena);
    case Member::dense:
      return dense_gradient<Kind, false>(p, index, arena);
    case Member::dense2:
      return dense_gradient<Kind, true>(p, index, arena);
    default:
      return tangent<Kind, true>(p, index, arena);
  }
}

template <class T> size_t rows(const RowProblem& p, RowMember member, int64_t index, Arena arena) {
  const bool counting = !arena.front;
  const auto run = [&]<class Task>(RowMember back) {
    const Task task(p, index, arena);
    if (!counting) member == back ? task.backward() : task.forward();
    return arena.used;
  };
  switch (member) {
    case RowMember::drop:
    case RowMember::drop_back:
      return run.template operator()<Drop<T>>(RowMember::drop_back);
    case RowMember::gate:
    case RowMember::gate_back:
      return run.template operator()<Gate<T>>(RowMember::gate_back);
    case RowMember::turn:
    case RowMember::turn_back:
      return p.adjacent ? run.template operator()<Turn<T, true>>(RowMember::turn_back)
                        : run.template operator()<Turn<T, false>>(RowMember::turn_back);
    default:
      break;
  }
  if (counting) return up(p.E * 8, 64);
  if (member == RowMember::norm) p.centered ? Norm<T, true>(p, index).forward() : Norm<T, false>(p, index).forward();
  if (member == RowMember::norm_back)
    p.centered ? Norm<T, true>(p, index).backward() : Norm<T, false>(p, index).backward();
  if (member == RowMember::softmax) (p.logarithm ? softmax_rows<T, true> : softmax_rows<T, false>)(p, index, arena);
  if (member == RowMember::softmax_back)
    (p.logarithm ? softmax_back<T, true> : softmax_back<T, false>)(p, index, arena);
  return 0;
}

// Float32 alone: torch's products of half types are as fast as ours.
template <class Kind> size_t product(const Product& p, int64_t task, Arena arena) {
  if constexpr (std::is_same_v<typename Kind::T, float>) {
    const Matmul<Kind> block(p, task, arena);
    if (arena.front) block.run();
  }
  return arena.used;
}

template <class Kind> constexpr Kernels KERNELS = {
    [](const Problem& p) -> int64_t { return Task::tiles<Kind>(p); },
    [](const Problem& p) -> Ranges {
      const auto split = Split<Kind>::of(p);
      return {split.tasks(p), split.ranges > 1 ? p.B * p.H : 0, split.bytes(p)};
    },
    [](const Problem& p, Member member) -> size_t {
      Arena counting{nullptr};
      return task<Kind>(p, member, 0, counting);
    },
    [](const Problem& p, Member member, int64_t index, char* scratch) {
      task<Kind>(p, member, index, Arena{scratch});
      fence();
    },
    [](const SparseProblem& p, SparseMember member) -> size_t { return sparse<Kind>(p, member, 0, Arena{nullptr}); },
    [](const SparseProblem& p, SparseMember member, int64_t index, char* scratch) {
      sparse<Kind>(p, member, index, Arena{scratch});
    },
    [](const RowProblem& p, RowMember member, int64_t index, char* scratch) -> size_t {
      const size_t bytes = rows<typename Kind::T>(p, member, index, Arena{scratch});
      fence();
      return bytes;
    },
    [](const Product& p, int64_t task, char* scratch) -> size_t { return product<Kind>(p, task, Arena{scratch}); },
};

}  // namespace

#ifdef AVX512BF16  // which differs in bfloat16 alone
const Kernels* avx512(Dtype dtype);

const Kernels* NAME(Dtype dtype) { return dtype == Dtype::bf16 ? &KERNELS<Pairs> : avx512(dtype); }
#else
#ifdef AVX512
const Kernels* avx2(Dtype dtype);
#endif

const Kernels* NAME(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return &KERNELS<Numbers<float, float>>;
    case Dtype::f64:
#ifdef AVX512  // doubles of its own took a quarter of this file's compilation, and saved a tenth of their time
      return avx2(dtype);
#else
      return &KERNELS<Numbers<double, double>>;
#endif
    case Dtype::f16:
      return &KERNELS<Numbers<f16, float>>;
    case Dtype::bf16:
      return &KERNELS<Numbers<bf16, float>>;
    default:
      return nullptr;
  }
}
#endif

}  // namespace xfn
