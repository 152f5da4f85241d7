// Kernels over a pattern's entries as torch ops that write into tensors they are given: tensors to a Call, through torch's
// stable ABI, so that one library serves every release from 2.11 on and every Python. Tensors have one batch dim, of size 1
// where they are shared, and numbers of a row side by side; a stream is CUDA's, as an integer.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>

#include "call.h"

#ifndef XFN_DEVICE  // whose tensors these kernels take
#define XFN_DEVICE CUDA
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;
using xfn::Member;

struct Request {
  xfn::Call p{};
  ScalarType type;

  Request(const Tensor& like, std::initializer_list<Maybe> all) : type(like.scalar_type()) {
    p.B = 1, p.aligned = 1;
    for (const Maybe& t : all) {
      if (!t || t->size(0) == 1) continue;
      STD_TORCH_CHECK(p.B == 1 || p.B == t->size(0), "batches of one call are equal, or 1");
      p.B = t->size(0);
    }
  }

  static int64_t step(const Tensor& t, int64_t dim) { return t.size(dim) == 1 ? 0 : t.stride(dim); }
  static void check(const Tensor& t, int64_t rank, ScalarType type) {
    STD_TORCH_CHECK(t.dim() == rank && t.scalar_type() == type, "a tensor's rank or dtype is not what its op takes");
    STD_TORCH_CHECK(t.stride(-1) == 1 || t.size(-1) <= 1, "the numbers of a row lie side by side");
  }
  void align(const Tensor& t) {
    const int64_t size = (int64_t)t.element_size();
    bool whole = (uintptr_t)t.const_data_ptr() % 16 == 0 && t.size(-1) * size % 16 == 0;
    for (int64_t dim = 0; dim + 1 < t.dim(); dim++) whole &= step(t, dim) * size % 16 == 0;
    p.aligned &= whole;
  }
  void set(xfn::Features& to, const Maybe& t, int64_t length, int64_t heads, int64_t features) {
    if (!t) return;
    check(*t, 4, type), align(*t);
    STD_TORCH_CHECK(t->size(1) == length && t->size(2) == heads && t->size(3) == features, "sizes of a call differ");
    to = {t->const_data_ptr(), step(*t, 0), step(*t, 1), step(*t, 2)};
  }
  void set(xfn::PerHead& to, const Maybe& t, int64_t heads, int64_t length) {
    if (!t) return;
    check(*t, 3, ScalarType::Float);
    STD_TORCH_CHECK(t->size(1) == heads && t->size(2) == length, "sizes of a call differ");
    to = {(const float*)t->const_data_ptr(), step(*t, 0), step(*t, 1)};
  }
  // One orientation of a pattern, if it is one: softmax asks for no places.
  void set(xfn::Listing& to, const Tensor& ends, const Maybe& places, const Maybe& order, int64_t lines,
           int64_t heads) {
    for (const Maybe& t : {Maybe(ends), places, order})
      if (t) {
        check(*t, 3, ScalarType::Int);
        STD_TORCH_CHECK(t->size(1) == 1 || t->size(1) == heads, "a pattern is of one head, or of all");
      }
    STD_TORCH_CHECK(ends.size(2) == lines, "sizes of a call differ");
    to.ends = (const int32_t*)ends.const_data_ptr(), to.batch = step(ends, 0), to.head = step(ends, 1);
    if (!places) return;
    to.places = (const int32_t*)places->const_data_ptr(), to.Z = places->size(2);
    to.place_batch = step(*places, 0), to.place_head = step(*places, 1);
    if (!order) return;
    STD_TORCH_CHECK(order->size(2) == to.Z && step(*order, 0) == to.place_batch && step(*order, 1) == to.place_head,
                    "a pattern's tables lie alike");
    to.order = (const int32_t*)order->const_data_ptr();
  }
  void set(xfn::Bounds& to, const Maybe& t) {
    if (!t) return;
    STD_TORCH_CHECK(t->dim() == 2 && t->scalar_type() == ScalarType::Long && t->size(1) == p.M,
                    "bounds are int64, one a query");
    to = {(const int64_t*)t->const_data_ptr(), step(*t, 0), step(*t, 1)};
  }
  void set_key(const Maybe& t, int64_t threshold) {
    p.threshold = (uint32_t)threshold, p.grow = (float)(65536.0 / (65536 - threshold));
    if (!t) return;
    check(*t, 2, ScalarType::Long);
    STD_TORCH_CHECK(t->size(1) == 2, "a key has two words");
    p.key = (const int64_t*)t->const_data_ptr(), p.key_batch = step(*t, 0);
  }

  template <class T> T* result(const Maybe& t, ScalarType type, std::initializer_list<int64_t> shape) {
    if (!t) return nullptr;
    check(*t, (int64_t)shape.size(), type);
    int64_t dim = 0;
    for (int64_t size : shape) STD_TORCH_CHECK(t->size(dim++) == size, "a result has another shape");
    STD_TORCH_CHECK(t->is_contiguous(), "results are contiguous");
    if (shape.size() == 4) align(*t);
    return static_cast<T*>(t->mutable_data_ptr());
  }

  // Of gradients, which are float32 where examples are still to be summed.
  void* gradient(const Maybe& t, int32_t& wide, std::initializer_list<int64_t> shape) {
    if (!t) return nullptr;
    wide = t->scalar_type() == ScalarType::Float;
    return result<void>(t, wide ? ScalarType::Float : type, shape);
  }

  using Start = int (*)(const xfn::Call*, Member, void*);
  void launch(Member member, int64_t stream, Start start = xfn_cuda_launch) {
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
                    "no kernel for this dtype");
    p.type = type == ScalarType::Float  ? xfn::Dtype::f32
             : type == ScalarType::Half ? xfn::Dtype::f16
                                        : xfn::Dtype::bf16;
    const int error = start(&p, member, (void*)stream);
    STD_TORCH_CHECK(!error, "a launch failed: ", xfn_cuda_error(error));
  }
};

// What attention's members share; `all`: whatever may have a batch.
Request begin(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& key, double scale, int64_t threshold,
              std::initializer_list<Maybe> all) {
  Request r(q, all);
  auto& p = r.p;
  p.M = q.size(1), p.H = q.size(2), p.K = q.size(3), p.N = k.size(1), p.G = k.size(2), p.V = v.size(3);
  p.scale = (float)scale;
  r.set(p.q, q, p.M, p.H, p.K), r.set(p.k, k, p.N, p.G, p.K), r.set(p.v, v, p.N, p.G, p.V);
  r.set_key(key, threshold);
  return r;
}

void forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& row_ends, const Tensor& columns,
             const Maybe& key, const Tensor& out, const Tensor& lse, double scale, int64_t threshold, int64_t stream) {
  Request r = begin(q, k, v, key, scale, threshold, {q, k, v, row_ends, columns, key});
  auto& p = r.p;
  r.set(p.rows, row_ends, columns, {}, p.M, p.H);
  p.result = r.result<void>(out, r.type, {p.B, p.M, p.H, p.V});
  p.numbers = r.result<float>(lse, ScalarType::Float, {p.B, p.H, p.M});
  r.launch(Member::forward, stream);
}

void queries(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& row_ends, const Tensor& columns,
             const Maybe& key, const Tensor& out, const Tensor& lse, const Maybe& dout, const Maybe& dlse,
             const Tensor& delta, const Maybe& dq, double scale, int64_t threshold, int64_t stream) {
  Request r = begin(q, k, v, key, scale, threshold, {q, k, v, row_ends, columns, key, out, lse, dout, dlse});
  auto& p = r.p;
  r.set(p.rows, row_ends, columns, {}, p.M, p.H);
  r.set(p.out, out, p.M, p.H, p.V), r.set(p.dout, dout, p.M, p.H, p.V);
  r.set(p.lse, lse, p.H, p.M), r.set(p.dlse, dlse, p.H, p.M);
  p.numbers = r.result<float>(delta, ScalarType::Float, {p.B, p.H, p.M});
  p.result = r.result<void>(dq, r.type, {p.B, p.M, p.H, p.K});
  r.launch(Member::queries, stream);
}

void keys(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& column_ends, const Tensor& rows,
          const Maybe& key, const Tensor& lse, const Maybe& dout, const Tensor& delta, const Maybe& dk, const Maybe& dv,
          double scale, int64_t threshold, int64_t stream) {
  Request r = begin(q, k, v, key, scale, threshold, {q, k, v, column_ends, rows, key, lse, dout, delta});
  auto& p = r.p;
  r.set(p.columns, column_ends, rows, {}, p.N, p.H), r.set(p.dout, dout, p.M, p.H, p.V);
  r.set(p.lse, lse, p.H, p.M), r.set(p.delta, delta, p.H, p.M);
  p.result = r.result<void>(dk, r.type, {p.B, p.N, p.G, p.K}),
  p.result2 = r.result<void>(dv, r.type, {p.B, p.N, p.G, p.V});
  r.launch(Member::keys, stream);
}

// Attention to all keys that lie within bounds.
void attend_forward(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& slopes, const Maybe& lo,
                    const Maybe& hi, const Maybe& key, const Tensor& out, const Tensor& lse, double scale,
                    int64_t threshold, int64_t stream) {
  Request r = begin(q, k, v, key, scale, threshold, {q, k, v, slopes, lo, hi, key});
  auto& p = r.p;
  r.set(p.slopes, slopes, p.H, 1), r.set(p.lo, lo), r.set(p.hi, hi);
  p.result = r.result<void>(out, r.type, {p.B, p.M, p.H, p.V});
  p.numbers = r.result<float>(lse, ScalarType::Float, {p.B, p.H, p.M});
  r.launch(Member::forward, stream, xfn_cuda_attend);
}

void attend_queries(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& slopes, const Maybe& lo,
                    const Maybe& hi, const Maybe& key, const Tensor& out, const Tensor& lse, const Maybe& dout,
                    const Maybe& dlse, const Tensor& delta, const Maybe& dq, const Maybe& shifts, double scale,
                    int64_t threshold, int64_t stream) {
  Request r = begin(q, k, v, key, scale, threshold, {q, k, v, slopes, lo, hi, key, out, lse, dout, dlse});
  auto& p = r.p;
  r.set(p.slopes, slopes, p.H, 1), r.set(p.lo, lo), r.set(p.hi, hi);
  r.set(p.out, out, p.M, p.H, p.V), r.set(p.dout, dout, p.M, p.H, p.V);
  r.set(p.lse, lse, p.H, p.M), r.set(p.dlse, dlse, p.H, p.M);
  p.numbers = r.result<float>(delta, ScalarType::Float, {p.B, p.H, p.M});
  p.shifts = r.result<float>(shifts, ScalarType::Float, {p.B, p.H, p.M});
  p.result = r.gradient(dq, p.wide, {p.B, p.M, p.H, p.K});
  r.launch(Member::queries, stream, xfn_cuda_attend);
}

void attend_keys(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& slopes, const Maybe& lo,
                 const Maybe& hi, const Maybe& key, const Tensor& lse, const Maybe& dout, const Tensor& delta,
                 const Maybe& dk, const Maybe& dv, double scale, int64_t threshold, int64_t stream) {
  Request r = begin(q, k, v, key, scale, threshold, {q, k, v, slopes, lo, hi, key, lse, dout, delta});
  auto& p = r.p;
  r.set(p.slopes, slopes, p.H, 1), r.set(p.lo, lo), r.set(p.hi, hi);
  r.set(p.dout, dout, p.M, p.H, p.V), r.set(p.lse, lse, p.H, p.M), r.set(p.delta, delta, p.H, p.M);
  p.result = r.gradient(dk, p.wide, {p.B, p.N, p.G, p.K});
  p.result2 = r.gradient(dv, p.wide2, {p.B, p.N, p.G, p.V});
  r.launch(Member::keys, stream, xfn_cuda_attend);
}

void between(const Tensor& q, const Tensor& k, const Tensor& row_ends, const Tensor& columns, const Tensor& values,
             int64_t stream) {
  Request r(q, {q, k, row_ends, columns});
  auto& p = r.p;
  p.M = q.size(1), p.H = q.size(2), p.K = q.size(3), p.N = k.size(1), p.G = k.size(2);
  r.set(p.q, q, p.M, p.H, p.K), r.set(p.k, k, p.N, p.G, p.K), r.set(p.rows, row_ends, columns, {}, p.M, p.H);
  p.numbers = r.result<float>(values, ScalarType::Float, {p.B, p.H, p.rows.Z});
  r.launch(Member::between, stream);
}

// By row: out[m, h] = Σ values[h, e] v[place[e], g]. By column, with an order: for each of out's heads, over the heads that
// share it.
void mix(const Tensor& values, const Tensor& v, const Tensor& ends, const Tensor& places, const Maybe& order,
         const Tensor& out, int64_t stream) {
  Request r(v, {values, v, ends, places});
  auto& p = r.p;
  p.M = ends.size(2), p.H = values.size(1), p.N = v.size(1), p.G = v.size(2), p.V = v.size(3), p.heads = out.size(2);
  r.set(p.v, v, p.N, p.G, p.V), r.set(p.rows, ends, places, order, p.M, p.H);
  r.set(p.values, values, p.H, p.rows.Z);
  p.numbers = r.result<float>(out, ScalarType::Float, {p.B, p.M, p.heads, p.V});
  r.launch(Member::mix, stream);
}

void softmax(const Tensor& values, const Tensor& row_ends, const Tensor& out, int64_t stream) {
  Request r(values, {values, row_ends});
  auto& p = r.p;
  p.M = row_ends.size(2), p.H = values.size(1);
  r.set(p.rows, row_ends, {}, {}, p.M, p.H);
  p.rows.Z = values.size(2);
  r.set(p.values, values, p.H, p.rows.Z);
  p.numbers = r.result<float>(out, ScalarType::Float, {p.B, p.H, p.rows.Z});
  r.launch(Member::softmax, stream);
}

}  // namespace

STABLE_TORCH_LIBRARY(xfn_cuda, m) {
  m.def(
      "forward(Tensor q, Tensor k, Tensor v, Tensor row_ends, Tensor columns, Tensor? key, Tensor(a!) out, "
      "Tensor(b!) lse, float scale, int threshold, int stream) -> ()");
  m.def(
      "queries(Tensor q, Tensor k, Tensor v, Tensor row_ends, Tensor columns, Tensor? key, Tensor out, Tensor lse, "
      "Tensor? dout, Tensor? dlse, Tensor(a!) delta, Tensor(b!)? dq, float scale, int threshold, int stream) -> ()");
  m.def(
      "keys(Tensor q, Tensor k, Tensor v, Tensor column_ends, Tensor rows, Tensor? key, Tensor lse, Tensor? dout, "
      "Tensor delta, Tensor(a!)? dk, Tensor(b!)? dv, float scale, int threshold, int stream) -> ()");
  m.def(
      "attend_forward(Tensor q, Tensor k, Tensor v, Tensor? slopes, Tensor? lo, Tensor? hi, Tensor? key, "
      "Tensor(a!) out, Tensor(b!) lse, float scale, int threshold, int stream) -> ()");
  m.def(
      "attend_queries(Tensor q, Tensor k, Tensor v, Tensor? slopes, Tensor? lo, Tensor? hi, Tensor? key, Tensor out, "
      "Tensor lse, Tensor? dout, Tensor? dlse, Tensor(a!) delta, Tensor(b!)? dq, Tensor(c!)? shifts, float scale, "
      "int threshold, int stream) -> ()");
  m.def(
      "attend_keys(Tensor q, Tensor k, Tensor v, Tensor? slopes, Tensor? lo, Tensor? hi, Tensor? key, Tensor lse, "
      "Tensor? dout, Tensor delta, Tensor(a!)? dk, Tensor(b!)? dv, float scale, int threshold, int stream) -> ()");
  m.def("between(Tensor q, Tensor k, Tensor row_ends, Tensor columns, Tensor(a!) values, int stream) -> ()");
  m.def("mix(Tensor values, Tensor v, Tensor ends, Tensor places, Tensor? order, Tensor(a!) out, int stream) -> ()");
  m.def("softmax(Tensor values, Tensor row_ends, Tensor(a!) out, int stream) -> ()");
}

#define XFN_IMPL(device) STABLE_TORCH_LIBRARY_IMPL(xfn_cuda, device, m)
XFN_IMPL(XFN_DEVICE) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("queries", TORCH_BOX(&queries));
  m.impl("keys", TORCH_BOX(&keys));
  m.impl("attend_forward", TORCH_BOX(&attend_forward));
  m.impl("attend_queries", TORCH_BOX(&attend_queries));
  m.impl("attend_keys", TORCH_BOX(&attend_keys));
  m.impl("between", TORCH_BOX(&between));
  m.impl("mix", TORCH_BOX(&mix));
  m.impl("softmax", TORCH_BOX(&softmax));
}

#define XFN_TEXT(name) #name
#define XFN_QUOTED(name) XFN_TEXT(name)
#define XFN_SAYS extern "C" __attribute__((visibility("default"))) const char*
XFN_SAYS xfn_version() { return XFN_VERSION; }
XFN_SAYS xfn_device() { return XFN_QUOTED(XFN_DEVICE); }
XFN_SAYS xfn_targets() { return XFN_TARGETS; }
