// Plain maps, x Wᵀ + b: of many rows by our own products where those are faster than torch's, and else by torch's.
// Differentiated twice, or by any transform, a map is torch's own.
#pragma once
#include "swift.h"

namespace {

using namespace swift;

constexpr int64_t ROWS = 32, WORK = 1 << 21;  // below that torch is as fast: packing a weight is worth some rows

bool multiplies() {
  static const bool faster = op<bool()>("xfn_cpu::multiplies").call();
  return faster;
}
// a b, and a line added to each row.
Tensor product(const Tensor& a, const Tensor& b, const Maybe& line = {}) {
  using F = Tensor(const Tensor&, const Tensor&, const Maybe&);
  static const auto kernel = op<F>("xfn_cpu::product");
  return kernel.call(a, b, line);
}
// [..., E] as rows.
Tensor flat(const Tensor& x) { return x.dim() == 2 ? x : x.reshape({-1, x.size(-1)}); }
Tensor shaped(const Tensor& y, const Tensor& like) {
  if (like.dim() == 2) return y;
  auto shape = like.sizes().vec();
  shape.back() = y.size(-1);
  return y.view(shape);
}

struct Linear : torch::autograd::Function<Linear> {
  static constexpr bool is_traceable = true;

  static Tensor run(const Tensor& x, const Tensor& weight, const Maybe& bias) {
    at::AutoDispatchBelowADInplaceOrView below;
    return shaped(product(flat(x), weight.t(), bias), x);
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Maybe& bias) {
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), x.requires_grad() ? weight : Tensor()});
    ctx->saved_data["biased"] = bias.has_value();
    ctx->set_materialize_grads(false);
    return run(x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    if (!dy[0].defined()) return variable_list(3);
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    const int64_t need = needed(ctx, {true, true, ctx->saved_data["biased"].toBool()});
    const bool ours = final(dy) && ordinary(x) && ordinary(weight);
    const auto times = [&](const Tensor& a, const Tensor& b) { return ours ? product(a, b) : at::mm(a, b); };
    std::optional<at::AutoDispatchBelowADInplaceOrView> below;
    if (ours) below.emplace();
    const Tensor d = ours ? flat(dy[0]).contiguous() : flat(dy[0]);
    Tensor dx, dweight, dbias;
    if (need & 1) dx = shaped(times(d, weight), dy[0]);
    if (need & 2) dweight = times(d.t(), flat(x));
    if (need & 4) dbias = d.sum(0);
    return {dx, dweight, dbias};
  }
};

// Whether these make a map that nothing looks at.
bool fits(const Tensor& x, const Tensor& weight, const Maybe& bias) {
  const auto same = [&](const Tensor& t, int64_t dim) {
    return ordinary(t) && t.dim() == dim && t.scalar_type() == x.scalar_type();
  };
  return rows(x, 2) && same(weight, 2) && weight.size(1) == x.size(-1) &&
         (!bias || (same(*bias, 1) && bias->size(0) == weight.size(0)));
}
bool taken(const Tensor& x, const Tensor& weight, const Maybe& bias) {
  const int64_t E = weight.size(1), F = weight.size(0), M = x.numel() / E;
  return x.scalar_type() == at::kFloat && E % 16 == 0 && F % 16 == 0 && M >= ROWS && M * E * F >= WORK &&
         x.is_contiguous() && weight.stride(1) == 1 && (!bias || bias->stride(0) == 1) && multiplies();
}

Tensor linear(const Tensor& x, const Tensor& weight, const Maybe& bias) {
  if (!fits(x, weight, bias)) return {};
  if (!taken(x, weight, bias)) return at::linear(x, weight, bias);
  return varies({x, weight, bias}) ? Linear::apply(x, weight, bias) : Linear::run(x, weight, bias);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(xfn_autograd, m) { m.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", &linear); }
