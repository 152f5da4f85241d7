// Products over the entries of a sparse pattern, and the attention made of them, as torch ops: tensors to a SparseProblem,
// its tasks to torch's threads. Tensors have one batch dim, of size 1 where they are shared.
#include <deque>

#include "isa.h"
#include "pattern.h"
#include "tensors.h"

namespace {

using xfn::SparseMember;

struct Call {
  xfn::SparseProblem p{};
  std::deque<Tensor> alive;
  ScalarType type;
  xfn::Dtype dtype;

  explicit Call(const Tensor& like) : type(like.scalar_type()), dtype(dtype_of(like)) {}

  void meet(const Maybe& t) {
    if (!t || t->size(0) == 1) return;
    STD_TORCH_CHECK(p.B == 1 || p.B == t->size(0), "batches of one call are equal, or 1");
    p.B = t->size(0);
  }
  const Tensor& last_dense(const Tensor& t) {
    return alive.emplace_back(t.stride(-1) == 1 || t.size(-1) == 1 ? t : ts::contiguous(t));
  }
  static int64_t step(const Tensor& t, int64_t dim) { return t.size(dim) == 1 ? 0 : t.stride(dim); }

  void set(xfn::Features& to, const Maybe& from) {
    if (!from) return;
    STD_TORCH_CHECK(from->scalar_type() == type && from->dim() == 4, "operands of one call share a dtype");
    const Tensor& t = last_dense(*from);
    to = {t.const_data_ptr(), step(t, 0), step(t, 1), step(t, 2)};
  }
  void set(xfn::PerHead& to, const Maybe& from) {
    if (!from) return;
    STD_TORCH_CHECK(from->scalar_type() == wide(type) && from->dim() == 3, "values and lse have the dtype of sums");
    const Tensor& t = last_dense(*from);
    to = {t.const_data_ptr(), step(t, 0), step(t, 1)};
  }
  // One orientation of a pattern whose entries meet `others` lines. Whoever made it, no kernel leaves its tensors.
  void set(xfn::Listing& to, const Tensor& ends, const Tensor& places, const Maybe& order, int64_t others) {
    const auto table = [&](const Tensor& given) -> const Tensor& {
      STD_TORCH_CHECK(given.scalar_type() == ScalarType::Int && given.dim() == 3, "a pattern's tables are int32");
      return last_dense(given);
    };
    const Tensor &e = table(ends), &t = table(places);
    to.ends = (const int32_t*)e.const_data_ptr(), to.batch = step(e, 0), to.head = step(e, 1), to.count = e.size(2);
    to.places = (const int32_t*)t.const_data_ptr(), to.place_batch = step(t, 0), to.place_head = step(t, 1);
    p.Z = t.size(2);
    for (int64_t b = 0; b < e.size(0); b++)
      for (int64_t h = 0; h < e.size(1); h++) {
        const int32_t* line = to.ends + b * to.batch + h * to.head;
        int64_t last = 0;
        bool good = true;
        for (int64_t i = 0; i < to.count; last = line[i++]) {
          good &= line[i] >= last;
          p.longest = std::max(p.longest, line[i] - last);
        }
        STD_TORCH_CHECK(good && last <= p.Z, "a pattern's lines end one behind another, and not behind its entries");
      }
    const auto inside = [](const Tensor& t, int64_t bound) {
      const int64_t count = t.size(2), batch = step(t, 0), head = step(t, 1);
      const int32_t* data = (const int32_t*)t.const_data_ptr();
      int32_t sign = 0;
      for (int64_t b = 0; b < (batch ? t.size(0) : 1); b++)
        for (int64_t h = 0; h < (head ? t.size(1) : 1); h++)
          for (int64_t z = 0; z < count; z++) {
            const int32_t x = data[b * batch + h * head + z];
            sign |= x | ((int32_t)bound - 1 - x);
          }
      return sign >= 0 && bound <= INT32_MAX;
    };
    STD_TORCH_CHECK(!p.longest || inside(t, others), "a pattern's entries lie within M and N");
    if (!order) return;
    const Tensor& o = table(*order);
    STD_TORCH_CHECK(!p.longest || inside(o, p.Z), "a pattern's order is one of its entries");
    STD_TORCH_CHECK(step(o, 0) == to.place_batch && step(o, 1) == to.place_head, "a pattern's tables lie alike");
    to.order = (const int32_t*)o.const_data_ptr();
  }
  void set_key(const Maybe& from, int64_t threshold) {
    p.threshold = (uint32_t)threshold, p.keep = 1 - (double)threshold / 65536;
    if (!from) return;
    const Tensor& t = last_dense(*from);
    p.key = (const int64_t*)t.const_data_ptr(), p.key_batch = step(t, 0);
  }

  // `heads` tasks an example, each cut into chunks of its lines where there are fewer than threads.
  void run(SparseMember member, int64_t heads, int64_t lines) {
    const xfn::Kernels* kernels = xfn::kernels(dtype);
    STD_TORCH_CHECK(kernels, "no kernels for XFN_ISA as it is set");
    const int64_t threads = ts::get_num_threads(), pairs = p.B * heads;
    if (!pairs || !lines) return;
    p.chunks = threads == 1 ? 1 : std::clamp<int64_t>(4 * threads / pairs, 1, lines);
    const int64_t tasks = pairs * p.chunks, workers = std::min(threads, tasks);
    const int64_t size = (int64_t)kernels->sparse_scratch(p, member) + 64;
    const Tensor scratch = make({workers * size}, ScalarType::Byte);
    char* memory = (char*)scratch.mutable_data_ptr();
    std::atomic<int64_t> next{0}, worker{0};
    const auto work = [&](int64_t, int64_t) {
      char* own = memory + worker++ * size;
      own += -(uintptr_t)own & 63;
      for (int64_t task; (task = next++) < tasks;) kernels->sparse(p, member, task, own);
    };
    if (workers == 1)
      work(0, 1);
    else
      ts::parallel_for(0, workers, 1, work);
  }
};

// What attention's members share.
Call begin(const Tensor& q, const Tensor& k, const Tensor& v, double scale) {
  Call call(q);
  auto& p = call.p;
  p.B = 1, p.scale = scale;
  p.M = q.size(1), p.H = q.size(2), p.K = q.size(3), p.N = k.size(1), p.G = k.size(2), p.V = v.size(3);
  return call;
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& row_ends,
                                   const Tensor& columns, const Maybe& key, double scale, int64_t threshold) {
  Call call = begin(q, k, v, scale);
  auto& p = call.p;
  for (const Maybe& t : {Maybe(q), Maybe(k), Maybe(v), Maybe(row_ends), Maybe(columns), key}) call.meet(t);
  call.set(p.q, q), call.set(p.k, k), call.set(p.v, v), call.set_key(key, threshold);
  call.set(p.rows, row_ends, columns, {}, p.N);
  Tensor out = make({p.B, p.M, p.H, p.V}, call.type), lse = make({p.B, p.H, p.M}, wide(call.type));
  p.result = out.mutable_data_ptr(), p.result2 = lse.mutable_data_ptr();
  call.run(SparseMember::forward, p.G, p.M);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& row_ends,
                                            const Tensor& columns, const Tensor& column_ends, const Tensor& rows,
                                            const Maybe& key, const Tensor& out, const Tensor& lse, const Maybe& dout,
                                            const Maybe& dlse, double scale, int64_t threshold, int64_t need) {
  Call call = begin(q, k, v, scale);
  auto& p = call.p;
  for (const Maybe& t : {Maybe(q), Maybe(k), Maybe(v), Maybe(row_ends), Maybe(columns), Maybe(column_ends), Maybe(rows),
                         key, Maybe(out), Maybe(lse), dout, dlse})
    call.meet(t);
  call.set(p.q, q), call.set(p.k, k), call.set(p.v, v), call.set_key(key, threshold);
  call.set(p.out, out), call.set(p.lse, lse), call.set(p.dout, dout), call.set(p.dlse, dlse);
  call.set(p.rows, row_ends, columns, {}, p.N), call.set(p.columns, column_ends, rows, {}, p.M);

  const Tensor delta = make({p.B, p.H, p.M}, wide(call.type));
  p.result = delta.mutable_data_ptr();
  call.run(SparseMember::delta, p.H, p.M);
  p.delta = {p.result, p.H * p.M, p.M};

  const Tensor none = make({0}, call.type);
  Tensor dq = need & 1 ? make({p.B, p.M, p.H, p.K}, call.type) : none;
  Tensor dk = need & 2 ? make({p.B, p.N, p.G, p.K}, call.type) : none;
  Tensor dv = need & 4 ? make({p.B, p.N, p.G, p.V}, call.type) : none;
  p.result = dq.mutable_data_ptr();
  if (need & 1) call.run(SparseMember::queries, p.G, p.M);
  p.result = need & 2 ? dk.mutable_data_ptr() : nullptr, p.result2 = need & 4 ? dv.mutable_data_ptr() : nullptr;
  if (need & 6 && p.H) call.run(SparseMember::keys, p.G, p.N);
  if (!p.dout.data) ts::zero_(dv);
  if (!p.H) ts::zero_(dk), ts::zero_(dv);
  return {dq, dk, dv};
}

Tensor between(const Tensor& q, const Tensor& k, const Tensor& row_ends, const Tensor& columns) {
  Call call(q);
  auto& p = call.p;
  p.B = 1, p.M = q.size(1), p.H = q.size(2), p.K = q.size(3), p.N = k.size(1), p.G = k.size(2);
  for (const Tensor& t : {q, k, row_ends, columns}) call.meet(t);
  call.set(p.q, q), call.set(p.k, k), call.set(p.rows, row_ends, columns, {}, p.N);
  Tensor values = make({p.B, p.H, p.Z}, wide(call.type));
  p.result = values.mutable_data_ptr();
  if (!p.M) ts::zero_(values);
  call.run(SparseMember::between, p.G, p.M);
  return values;
}

// By row: out[m, h] = Σ values[h, e] v[place[e], g]. By column, with an order: for each of `heads`, over the heads that
// share it.
Tensor mix(const Tensor& values, const Tensor& v, const Tensor& ends, const Tensor& places, const Maybe& order,
           int64_t heads) {
  Call call(v);
  auto& p = call.p;
  p.B = 1, p.M = ends.size(2), p.H = values.size(1), p.N = v.size(1), p.G = v.size(2), p.V = v.size(3), p.heads = heads;
  for (const Tensor& t : {values, v, ends, places}) call.meet(t);
  call.set(p.values, values), call.set(p.v, v), call.set(p.rows, ends, places, order, p.N);
  Tensor out = make({p.B, p.M, heads, p.V}, wide(call.type));
  p.result = out.mutable_data_ptr();
  if (!p.H) ts::zero_(out);
  if (p.H) call.run(SparseMember::mix, heads, p.M);
  return out;
}

Tensor softmax(const Tensor& values, const Tensor& row_ends) {
  Call call(values);
  auto& p = call.p;
  p.B = 1, p.M = row_ends.size(2), p.H = values.size(1);
  for (const Tensor& t : {values, row_ends}) call.meet(t);
  const Tensor nowhere = make({1, 1, values.size(2)}, ScalarType::Int);
  ts::zero_(const_cast<Tensor&>(nowhere));
  call.set(p.values, values), call.set(p.rows, row_ends, nowhere, {}, 1);
  Tensor out = make({p.B, p.H, p.Z}, call.type);
  p.result = out.mutable_data_ptr();
  if (!p.M) ts::zero_(out);
  call.run(SparseMember::softmax, p.H, p.M);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(xfn_cpu, m) {
  m.def(
      "sparse_forward(Tensor q, Tensor k, Tensor v, Tensor row_ends, Tensor columns, Tensor? key, float scale, "
      "int threshold) -> (Tensor, Tensor)");
  m.def(
      "sparse_backward(Tensor q, Tensor k, Tensor v, Tensor row_ends, Tensor columns, Tensor column_ends, Tensor rows, "
      "Tensor? key, Tensor out, Tensor lse, Tensor? dout, Tensor? dlse, float scale, int threshold, int need) -> "
      "(Tensor, Tensor, Tensor)");
  m.def("sparse_between(Tensor q, Tensor k, Tensor row_ends, Tensor columns) -> Tensor");
  m.def("sparse_mix(Tensor values, Tensor v, Tensor ends, Tensor places, Tensor? order, int heads) -> Tensor");
  m.def("sparse_softmax(Tensor values, Tensor row_ends) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(xfn_cpu, CPU, m) {
  m.impl("sparse_forward", TORCH_BOX(&forward));
  m.impl("sparse_backward", TORCH_BOX(&backward));
  m.impl("sparse_between", TORCH_BOX(&between));
  m.impl("sparse_mix", TORCH_BOX(&mix));
  m.impl("sparse_softmax", TORCH_BOX(&softmax));
}
