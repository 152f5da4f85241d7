// The plainest calls of attention, also over a layout, without Python, reverse mode included: q, k and v of one batch,
// bounds, and the default scale. Any other call gets nothing back, and takes the road through Python.
#pragma once
#include <cmath>
#include "swift.h"

namespace {

using namespace swift;

using Run = void (*)(xfn::Problem&, xfn::Member, int64_t tasks);

// Where the library beside this one begins, which no op's boxes lie before: half the time of a short call would go to
// them. Absent, if what it calls a problem has another size.
Run there() {
  static const auto found = op<int64_t(int64_t)>("xfn_cpu::attention_entry").call(sizeof(xfn::Problem));
  return (Run)found;
}
void run(xfn::Problem& p, xfn::Member member, int64_t tasks = -1) { there()(p, member, tasks); }

}  // namespace

#include "../cpu/call.h"

namespace {

bool fit(const Tensor& q, const Tensor& k, const Tensor& v) {
  const int64_t rank = q.dim() - 3;
  const auto dtype = q.scalar_type();
  if (!floating(dtype) || k.scalar_type() != dtype || v.scalar_type() != dtype) return false;
  if (rank < 0 || k.dim() != q.dim() || v.dim() != q.dim()) return false;
  for (int64_t i = 0; i < rank; i++)
    if (k.size(i) != q.size(i) || v.size(i) != q.size(i)) return false;
  const int64_t K = q.size(-1), V = v.size(-1), H = q.size(-2), G = k.size(-2);
  return K && V && G && H % G == 0 && k.size(-1) == K && v.size(-2) == G && k.size(-3) == v.size(-3);
}

double usual(const Tensor& q) { return std::pow((double)q.size(-1), -0.5); }

// A layout: its tiles, the bits of those that are partial, and the lists that other backends read. Absent: all is live.
struct Tiles {
  Maybe blocks, index, words;
  std::vector<Tensor> lists;
  int64_t size = 0;

  bool fit(int64_t M, int64_t N, int64_t H) const {
    if (!ordinary(*blocks) || blocks->dim() != 3 || blocks->scalar_type() != at::kBool || size < 1) return false;
    const int64_t rows = (M + size - 1) / size, columns = (N + size - 1) / size;
    const auto all = [&](const Tensor& t) {
      return t.dim() == 3 && t.size(1) == rows && t.size(2) == columns && (t.size(0) == 1 || t.size(0) == H);
    };
    if (index.has_value() != words.has_value()) return false;
    return all(*blocks) && (!index || (all(*index) && ordinary(*index) && ordinary(*words)));
  }
};

void begin(Call& call, const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& lo, const Maybe& hi,
           const Tiles& tiles) {
  call.count();
  call.set(call.p.x.q, q), call.set(call.p.x.k, k), call.set(call.p.x.v, v);
  call.set(call.p.lo, lo), call.set(call.p.hi, hi);
  call.layout(tiles.blocks, tiles.index, tiles.words, tiles.size);
}

// out and lse; and whether a number is not finite that bounds or tiles were to hide.
Pair forward(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& lo, const Maybe& hi, const Tiles& tiles) {
  at::AutoDispatchBelowADInplaceOrView below;
  Call call(q, k, v, usual(q), 0);
  call.meet(q, 3), call.meet(lo, 1), call.meet(hi, 1);
  begin(call, q, k, v, lo, hi, tiles);
  auto [out, lse, leaked] = outward(call, xfn::Member::forward);
  return {out, lse, leaked && (lo || hi || tiles.blocks)};
}

// What autograd keeps.
struct Saved {
  Tensor q, k, v, out, lse;
  Maybe lo, hi;
  Tiles tiles;

  static variable_list list(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& lo, const Maybe& hi,
                            const Tensor& out, const Tensor& lse, const Tiles& tiles) {
    variable_list all = {q, k, v, lo.value_or(Tensor()), hi.value_or(Tensor()), out, lse};
    if (!tiles.blocks) return all;
    for (const Maybe& t : {tiles.blocks, tiles.index, tiles.words}) all.push_back(t.value_or(Tensor()));
    all.insert(all.end(), tiles.lists.begin(), tiles.lists.end());
    return all;
  }
  explicit Saved(AutogradContext* ctx) {
    const variable_list x = ctx->get_saved_variables();
    q = x[0], k = x[1], v = x[2], lo = maybe(x[3]), hi = maybe(x[4]), out = x[5], lse = x[6];
    if (x.size() == 7) return;
    tiles = {maybe(x[7]), maybe(x[8]), maybe(x[9]), {x.begin() + 10, x.end()}, ctx->saved_data["size"].toInt()};
  }
};

// The gradients of q, k and v for which the bits of need are set; nothing where the kernel is not sure of them, or where
// bounds have a batch that these have not.
variable_list direct(const Saved& x, const Maybe& d_out, const Maybe& d_lse, int64_t need) {
  Call call(x.q, x.k, x.v, usual(x.q), 0);
  call.meet(x.out, 3), call.meet(d_out, 3), call.meet(d_lse, 2);
  begin(call, x.q, x.k, x.v, x.lo, x.hi, x.tiles);
  call.set(call.p.y.out, x.out), call.set(call.p.y.lse, x.lse);
  call.set(call.p.dy.out, d_out), call.set(call.p.dy.lse, d_lse);
  if (call.p.B * call.p.M * call.p.H * call.p.K != x.q.numel()) return {};
  auto [dq, dk, dv, dense, slopes, leaked] = inward(call, xfn::Member::backward, {}, need);
  if (leaked && (x.lo || x.hi || x.tiles.blocks)) return {};
  return {dq, dk, dv};
}

// The same by the op of the family, which looks at everything, and has derivatives.
variable_list general(const Saved& x, const Maybe& d_out, const Maybe& d_lse, int64_t need) {
  using T = const Tensor&;
  using M = const Maybe&;
  using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
  const auto three = [](const Five& five) -> variable_list {
    return {std::get<0>(five), std::get<1>(five), std::get<2>(five)};
  };
  const double scale = usual(x.q);
  if (!x.tiles.blocks) {
    using F = Five(T, T, T, M, M, M, M, M, T, T, M, M, double, double, Text, int64_t);
    static const auto family = op<F>("xfn::attention_backward");
    return three(family.call(x.q, x.k, x.v, {}, {}, x.lo, x.hi, {}, x.out, x.lse, d_out, d_lse, 0, scale, {}, need));
  }
  using F = Five(T, T, T, M, M, M, M, M, T, M, M, T, T, T, T, T, T, T, T, M, M, double, double, double, Text, int64_t);
  static const auto family = op<F>("xfn::blocksparse_backward");
  const auto& [blocks, index, words, lists, size] = x.tiles;
  return three(family.call(x.q, x.k, x.v, {}, {}, x.lo, x.hi, {}, *blocks, index, words, lists[0], lists[1], lists[2],
                           lists[3], lists[4], lists[5], x.out, x.lse, d_out, d_lse, 0, scale, (double)size, {}, need));
}

struct Attention : torch::autograd::Function<Attention> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& lo,
                               const Maybe& hi, const Tiles* tiles, bool* hidden) {
    auto [out, lse, leaked] = ::forward(q, k, v, lo, hi, *tiles);
    *hidden = leaked;
    ctx->save_for_backward(Saved::list(q, k, v, lo, hi, out, lse, *tiles));
    if (tiles->blocks) ctx->saved_data["size"] = tiles->size;
    ctx->set_materialize_grads(false);
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    if (!dy[0].defined() && !dy[1].defined()) return variable_list(7);
    const Saved x(ctx);
    const Maybe d_out = maybe(dy[0]), d_lse = maybe(dy[1]);
    const int64_t need = needed(ctx, {true, true, true});
    variable_list dx;
    if (final(dy)) {
      at::AutoDispatchBelowADInplaceOrView below;
      dx = direct(x, d_out, d_lse, need);
    }
    if (dx.empty()) dx = general(x, d_out, d_lse, need);
    return wanted(std::move(dx), need, 7);
  }
};

using Outputs = std::tuple<Tensor, Tensor>;

Outputs attend(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& lo, const Maybe& hi,
               const Tiles& tiles) {
  if (recording() && (q.requires_grad() || k.requires_grad() || v.requires_grad())) {
    bool hidden = false;
    const auto y = Attention::apply(q, k, v, lo, hi, &tiles, &hidden);
    return hidden ? Outputs() : Outputs(y[0], y[1]);
  }
  auto [out, lse, leaked] = forward(q, k, v, lo, hi, tiles);
  return leaked ? Outputs() : Outputs(out, lse);
}

bool taken(const Tensor& q, const Tensor& k, const Tensor& v) {
  return alone() && ordinary(q) && ordinary(k) && ordinary(v) && fit(q, k, v) && there();
}

Outputs attention(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& lo, const Maybe& hi) {
  return taken(q, k, v) ? attend(q, k, v, lo, hi, {}) : Outputs();
}

Outputs blocksparse(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& lo, const Maybe& hi,
                    const Tensor& blocks, const Maybe& index, const Maybe& words, const Tensor& row_index,
                    const Tensor& row_counts, const Tensor& row_order, const Tensor& column_index,
                    const Tensor& column_counts, const Tensor& column_order, int64_t M, int64_t N, int64_t size) {
  if (!taken(q, k, v) || q.size(-3) != M || k.size(-3) != N) return {};
  const Tiles tiles{
      blocks, index, words, {row_index, row_counts, row_order, column_index, column_counts, column_order}, size};
  return tiles.fit(M, N, q.size(-2)) ? attend(q, k, v, lo, hi, tiles) : Outputs();
}

}  // namespace

TORCH_LIBRARY(xfn_autograd, m) {
  m.def("attention(Tensor q, Tensor k, Tensor v, Tensor? lo, Tensor? hi) -> (Tensor, Tensor)", &attention);
  m.def(
      "blocksparse(Tensor q, Tensor k, Tensor v, Tensor? lo, Tensor? hi, Tensor blocks, Tensor? index, Tensor? words, "
      "Tensor row_index, Tensor row_counts, Tensor row_order, Tensor column_index, Tensor column_counts, "
      "Tensor column_order, int M, int N, int size) -> (Tensor, Tensor)",
      &blocksparse);
}

extern "C" __attribute__((visibility("default"))) const char* xfn_version() { return XFN_VERSION; }
