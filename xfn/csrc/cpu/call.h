// One call of the attention family, from tensors to a problem and back. Torch has two ABIs for tensors, and a file that
// includes this has said, by a tensors.h, which one it means; and `run`, which has the tasks of a member done.
#pragma once

namespace {

using Pair = std::tuple<Tensor, Tensor, bool>;  // and whether a number is not finite
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, bool>;

// The problem, and what its pointers point to besides the caller's tensors.
struct Call {
  static constexpr int64_t MOST = 32;  // tensors
  xfn::Problem p{};
  const Tensor& q;
  Shape batch;
  std::vector<Tensor> copies;
  Maybe nothing;
  Shape offsets;
  std::atomic<bool> broken{false};

  Call(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t threshold) : q(q) {
    p.M = q.size(-3), p.H = q.size(-2), p.K = q.size(-1);
    p.N = k.size(-3), p.G = k.size(-2), p.V = v.size(-1), p.R = p.H / std::max<int64_t>(1, p.G);
    p.scale = scale, p.keep = 1 - (double)threshold / 65536, p.threshold = (uint32_t)threshold, p.dtype = dtype_of(q);
    p.broken = &broken, p.turns_B = p.turns_G = 1;
    STD_TORCH_CHECK(std::max(p.M, p.N) <= INT32_MAX, "attention takes fewer than 2**31 queries and keys, but got ", p.M,
                    " and ", p.N, ": cut them into segments");
  }

  void meet(const Tensor& t, int64_t rank) {
    const int64_t own = t.dim() - rank;
    if ((int64_t)batch.size() < own) batch.insert(batch.begin(), own - batch.size(), 1);
    for (int64_t i = 0; i < own; i++) {
      int64_t& size = batch[batch.size() - own + i];
      if (t.size(i) != 1) size = t.size(i);
    }
  }
  void meet(const Maybe& t, int64_t rank) {
    if (t) meet(*t, rank);
  }
  void count() {
    p.B = 1;
    for (int64_t size : batch) p.B *= size;
    if (p.B != 1) offsets.reserve(MOST * p.B);  // once, for p points into it
  }

  // Where every example of t begins.
  const int64_t* examples(const Tensor& t, int64_t rank) {
    static const int64_t front = 0;
    if (p.B == 1) return &front;
    STD_TORCH_CHECK((int64_t)offsets.size() + p.B <= MOST * p.B, "more tensors than a call has");
    int64_t* const found = offsets.data() + offsets.size();
    offsets.resize(offsets.size() + p.B, 0);
    const int64_t own = t.dim() - rank;
    int64_t repeat = 1;
    for (int64_t i = own - 1, j = (int64_t)batch.size() - 1; i >= 0; i--, j--) {
      if (t.size(i) != 1)
        for (int64_t b = 0; b < p.B; b++) found[b] += b / repeat % batch[j] * t.stride(i);
      repeat *= batch[j];
    }
    return found;
  }

  const Tensor& dense_last(const Tensor& t) {
    return t.stride(-1) == 1 || t.size(-1) == 1 ? t : copies.emplace_back(packed(t));
  }
  static int64_t step(const Tensor& t, int64_t dim) { return t.size(dim) == 1 ? 0 : t.stride(dim); }

  void set(xfn::Sequence& to, const Tensor& from) {
    STD_TORCH_CHECK(from.scalar_type() == q.scalar_type(), "operands of one call share a dtype");
    const Tensor& t = dense_last(from);
    to = {t.const_data_ptr(), examples(t, 3), step(t, -3), step(t, -2)};
  }
  void set(xfn::Sequence& to, const Maybe& from) {
    if (from) set(to, *from);
  }
  void set(xfn::Rows& to, const Maybe& from, int64_t rank = 2) {
    if (!from) return;
    STD_TORCH_CHECK(from->scalar_type() == wide(q.scalar_type()), "lse and slopes have the dtype of sums");
    to = {from->const_data_ptr(), examples(*from, rank), step(*from, rank == 2 ? -2 : -1),
          rank == 2 ? step(*from, -1) : 0};
  }
  void set(xfn::Square& to, const Maybe& from) {
    if (!from) return;
    to = {from->const_data_ptr(), examples(*from, 3), step(*from, -3),
          step(*from, -2),        step(*from, -1),    dtype_of(*from)};
  }
  void set(xfn::Bound& to, const Maybe& from) {
    if (!from) return;
    STD_TORCH_CHECK(from->scalar_type() == ScalarType::Long, "bounds are int64");
    to = {(const int64_t*)from->const_data_ptr(), examples(*from, 1), step(*from, -1)};
  }
  void layout(const Maybe& blocks, const Maybe& index, const Maybe& words, int64_t size) {
    if (!blocks) return;
    STD_TORCH_CHECK(blocks->scalar_type() == ScalarType::Bool, "the tiles of a layout are boolean");
    xfn::Layout& y = p.layout;
    const Tensor& live = dense_last(*blocks);
    y.live = (const uint8_t*)live.const_data_ptr(), y.batch = examples(live, 3);
    y.head = step(live, -3), y.row = step(live, -2), y.columns = live.size(-1), y.size = size;
    while (1 << y.shift < size) y.shift++;
    if (!index) return;
    STD_TORCH_CHECK(index->scalar_type() == ScalarType::Int && words->scalar_type() == ScalarType::Int,
                    "the bits of a layout are int32");
    const Tensor& place = dense_last(*index);
    y.index = (const int32_t*)place.const_data_ptr(), y.index_batch = examples(place, 3);
    y.index_head = step(place, -3), y.index_row = step(place, -2);
    const Tensor& bits = words->is_contiguous() ? *words : copies.emplace_back(packed(*words));
    y.words = (const uint32_t*)bits.const_data_ptr(), y.words_batch = examples(bits, 3);
  }
  void key(const Maybe& from) {
    if (!from) return;
    const Tensor& t = dense_last(*from);
    p.key = (const int64_t*)t.const_data_ptr(), p.key_batch = examples(t, 1);
  }

  Tensor empty(std::initializer_list<int64_t> dims, bool sums = false) {
    Shape shape;
    shape.reserve(batch.size() + dims.size());
    shape = batch, shape.insert(shape.end(), dims);
    return make(shape, sums ? wide(q.scalar_type()) : q.scalar_type());
  }
  const Tensor& none() {
    if (!nothing) nothing = absent(q.scalar_type());
    return *nothing;
  }

  // A place for the gradient of the dense bias, in its own shape; examples and heads that share a slice are summed.
  Shape slice;
  Tensor dense(const Tensor& t) {
    const Shape shape = shape_of(t);
    const int64_t rank = t.dim() - 3, heads = t.size(-3), pairs = p.B * p.H;
    slice.assign(pairs, 0);
    int64_t repeat = 1, stride = heads;
    for (int64_t i = rank - 1, j = (int64_t)batch.size() - 1; i >= 0; i--, j--) {
      for (int64_t b = 0; t.size(i) != 1 && b < pairs; b++) slice[b] += b / p.H / repeat % batch[j] * stride;
      repeat *= batch[j], stride *= t.size(i);
    }
    for (int64_t b = 0; heads != 1 && b < pairs; b++) slice[b] += b % p.H;
    p.slice = slice.data(), p.slices = stride, p.dense_M = t.size(-2), p.dense_N = t.size(-1);
    const bool full = p.dense_M == p.M && p.dense_N == p.N, shared = heads == p.slices;  // by all examples
    p.alone = full && p.slices == pairs;
    const int64_t turns_B = shared ? std::max<int64_t>(1, p.B) : 1,
                  turns_G = heads == 1 ? std::max<int64_t>(1, p.G) : 1, cuts = p.B * p.G / (turns_B * turns_G);
    p.turns = full && !p.alone && (shared || p.slices == heads * p.B) && cuts >= 4;  // fewer would leave threads idle
    if (p.turns) p.turns_B = turns_B, p.turns_G = turns_G;
    const bool own = p.alone && t.scalar_type() == q.scalar_type();
    Tensor sum = make(shape, own ? t.scalar_type() : wide(q.scalar_type()));
    if (p.turns || p.lo.data || p.hi.data || p.layout.live || !p.M || !p.N || !p.B || !p.H) zero(sum);
    return sum;
  }
};

Pair outward(Call& call, xfn::Member member) {
  auto& p = call.p;
  Tensor out = call.empty({p.M, p.H, p.V}), lse = call.empty({p.H, p.M}, true);
  p.out = out.mutable_data_ptr(), p.lse = lse.mutable_data_ptr();
  run(p, member);
  return {out, lse, call.broken};
}
Five inward(Call& call, xfn::Member member, const Maybe& bias, int64_t need) {
  auto& p = call.p;
  Tensor dq = need & 1 ? call.empty({p.M, p.H, p.K}) : call.none(),
         dk = need & 2 ? call.empty({p.N, p.G, p.K}) : call.none();
  Tensor dv = need & 4 ? call.empty({p.N, p.G, p.V}) : call.none(),
         slopes = need & 16 ? call.empty({p.H, p.M}, true) : call.none();
  p.dq = need & 1 ? dq.mutable_data_ptr() : nullptr, p.dk = need & 2 ? dk.mutable_data_ptr() : nullptr;
  p.dv = need & 4 ? dv.mutable_data_ptr() : nullptr, p.slopes = need & 16 ? slopes.mutable_data_ptr() : nullptr;
  for (Tensor* t : {&dk, &dv})
    if ((!p.M || !p.H) && t->numel()) zero(*t);  // no tile will
  Tensor dense = need & 8 ? call.dense(*bias) : call.none();
  if (need & 8 && (p.alone || p.turns)) p.dense = dense.mutable_data_ptr();
  if (need & ~8 || p.dense) run(p, member);
  if (need & 8 && !p.alone && !p.turns && p.M && p.N && p.B && p.H) {
    p.dense = dense.mutable_data_ptr();
    run(p, member == xfn::Member::hvp ? xfn::Member::dense2 : xfn::Member::dense,
        p.slices * (p.dense_M == 1 ? 1 : (p.M + 63) / 64));
  }
  return {dq, dk, dv, dense, slopes, call.broken};
}

}  // namespace
