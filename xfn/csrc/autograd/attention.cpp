// The plainest calls of attention without Python, reverse mode included: q, k and v of one batch, bounds, and the default
// scale. Any other call gets nothing back, and takes the road through Python.
#include <cmath>
#include "swift.h"

namespace {

using namespace swift;
using Pair = std::tuple<Tensor, Tensor>;

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

// out and lse; and whether a number is not finite that bounds were to hide.
std::tuple<Tensor, Tensor, bool> forward(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& lo,
                                         const Maybe& hi) {
  using F =
      std::tuple<Tensor, Tensor, bool>(const Tensor&, const Tensor&, const Tensor&, const Maybe&, const Maybe&, double);
  static const auto kernel = op<F>("xfn_cpu::attention_bare");
  at::AutoDispatchBelowADInplaceOrView below;
  auto [out, lse, leaked] = kernel.call(q, k, v, lo, hi, usual(q));
  return {out, lse, leaked && (lo || hi)};
}

// The gradients of q, k and v for which the bits of need are set; nothing where the kernel is not sure of them.
variable_list direct(const variable_list& x, const Maybe& d_out, const Maybe& d_lse, int64_t need) {
  using F = std::tuple<Tensor, Tensor, Tensor, bool, bool>(const Tensor&, const Tensor&, const Tensor&, const Maybe&,
                                                           const Maybe&, const Tensor&, const Tensor&, const Maybe&,
                                                           const Maybe&, double, int64_t);
  static const auto kernel = op<F>("xfn_cpu::attention_bare_backward");
  const Maybe lo = maybe(x[3]), hi = maybe(x[4]);
  auto [dq, dk, dv, leaked, whole] = kernel.call(x[0], x[1], x[2], lo, hi, x[5], x[6], d_out, d_lse, usual(x[0]), need);
  if ((leaked && (lo || hi)) || !whole) return {};
  return {dq, dk, dv};
}

// The same by the op of the family, which looks at everything, and has derivatives.
variable_list general(const variable_list& x, const Maybe& d_out, const Maybe& d_lse, int64_t need) {
  using F = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Maybe&, const Maybe&, const Maybe&, const Maybe&, const Maybe&,
      const Tensor&, const Tensor&, const Maybe&, const Maybe&, double, double, Text, int64_t);
  static const auto family = op<F>("xfn::attention_backward");
  auto [dq, dk, dv, dense, slopes] = family.call(x[0], x[1], x[2], {}, {}, maybe(x[3]), maybe(x[4]), {}, x[5], x[6],
                                                 d_out, d_lse, 0, usual(x[0]), {}, need);
  return {dq, dk, dv};
}

struct Attention : torch::autograd::Function<Attention> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& lo,
                               const Maybe& hi, bool* hidden) {
    auto [out, lse, leaked] = ::forward(q, k, v, lo, hi);
    *hidden = leaked;
    ctx->save_for_backward({q, k, v, lo.value_or(Tensor()), hi.value_or(Tensor()), out, lse});
    ctx->set_materialize_grads(false);
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    if (!dy[0].defined() && !dy[1].defined()) return variable_list(6);
    const auto x = ctx->get_saved_variables();
    const Maybe d_out = maybe(dy[0]), d_lse = maybe(dy[1]);
    const int64_t need = needed(ctx, {true, true, true});
    variable_list dx;
    if (final(dy)) {
      at::AutoDispatchBelowADInplaceOrView below;
      dx = direct(x, d_out, d_lse, need);
    }
    if (dx.empty()) dx = general(x, d_out, d_lse, need);
    return wanted(std::move(dx), need, 6);
  }
};

Pair attention(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& lo, const Maybe& hi) {
  if (!alone() || !ordinary(q) || !ordinary(k) || !ordinary(v) || !fit(q, k, v)) return {};
  bool hidden = false;
  if (recording() && (q.requires_grad() || k.requires_grad() || v.requires_grad())) {
    const auto y = Attention::apply(q, k, v, lo, hi, &hidden);
    return hidden ? Pair() : Pair(y[0], y[1]);
  }
  auto [out, lse, leaked] = forward(q, k, v, lo, hi);
  return leaked ? Pair() : Pair(out, lse);
}

}  // namespace

TORCH_LIBRARY(xfn_autograd, m) {
  m.def("attention(Tensor q, Tensor k, Tensor v, Tensor? lo, Tensor? hi) -> (Tensor, Tensor)", &attention);
}

extern "C" __attribute__((visibility("default"))) const char* xfn_version() { return XFN_VERSION; }
