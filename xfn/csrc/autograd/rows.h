// The plainest calls of norms and softmaxes without Python, reverse mode included: rows of one batch, and what they
// share, if anything, in one line. Any other call gets nothing back, and takes the road through Python.
#pragma once
#include <cmath>
#include "swift.h"

namespace {

using namespace swift;

struct Norm : torch::autograd::Function<Norm> {
  static constexpr bool is_traceable = true;

  // y, and what the backward pass need not find again.
  static std::tuple<Tensor, Tensor> run(const Tensor& x, const Maybe& weight, const Maybe& bias, double eps,
                                        bool centered, bool keep) {
    using F = std::tuple<Tensor, Tensor>(const Tensor&, const Maybe&, const Maybe&, int64_t, double, bool, bool);
    static const auto kernel = op<F>("xfn_cpu::norm");
    at::AutoDispatchBelowADInplaceOrView below;
    return kernel.call(x, weight, bias, 0, eps, centered, keep);
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Maybe& weight, const Maybe& bias, double eps,
                        bool centered) {
    auto [y, moments] = run(x, weight, bias, eps, centered, true);
    ctx->save_for_backward({x, weight.value_or(Tensor()), bias.value_or(Tensor()), moments});
    ctx->saved_data["eps"] = eps, ctx->saved_data["centered"] = centered;
    ctx->set_materialize_grads(false);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    if (!dy[0].defined()) return variable_list(5);
    const auto saved = ctx->get_saved_variables();
    const Tensor& x = saved[0];
    const Maybe weight = maybe(saved[1]), bias = maybe(saved[2]);
    const double eps = ctx->saved_data["eps"].toDouble();
    const bool centered = ctx->saved_data["centered"].toBool();
    const int64_t need = needed(ctx, {true, weight.has_value(), bias.has_value()});
    if (final(dy)) {
      using F = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Maybe&, const Maybe&, const Tensor&,
                                                   const Maybe&, int64_t, double, bool, int64_t);
      static const auto kernel = op<F>("xfn_cpu::norm_backward");
      at::AutoDispatchBelowADInplaceOrView below;
      auto [dx, dw, db] = kernel.call(x, weight, bias, dy[0], saved[3], 0, eps, centered, need);
      return wanted({dx, dw, db}, need, 5);
    }
    if (centered) {
      using Y = Tensor(const Tensor&, const Maybe&, const Maybe&, double, Text);
      using F = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Maybe&, const Maybe&, const Tensor&,
                                                   const Maybe&, double, Text, int64_t);
      static const auto value = op<Y>("xfn::layer_norm_forward");
      static const auto family = op<F>("xfn::layer_norm_backward");
      const Tensor y = value.call(x, weight, bias, eps, {});
      auto [dx, dw, db] = family.call(x, weight, bias, y, dy[0], eps, {}, need);
      return wanted({dx, dw, db}, need, 5);
    }
    using Y = Tensor(const Tensor&, const Maybe&, double, Text);
    using F =
        std::tuple<Tensor, Tensor>(const Tensor&, const Maybe&, const Tensor&, const Maybe&, double, Text, int64_t);
    static const auto value = op<Y>("xfn::rms_norm_forward");
    static const auto family = op<F>("xfn::rms_norm_backward");
    const Tensor y = value.call(x, weight, eps, {});
    auto [dx, dw] = family.call(x, weight, y, dy[0], eps, {}, need);
    return wanted({dx, dw}, need, 5);
  }
};

struct Softmax : torch::autograd::Function<Softmax> {
  static constexpr bool is_traceable = true;

  static Tensor run(const Tensor& x, bool logarithm) {
    using F = Tensor(const Tensor&, const Maybe&, const Maybe&, int64_t, bool);
    static const auto kernel = op<F>("xfn_cpu::softmax");
    at::AutoDispatchBelowADInplaceOrView below;
    return kernel.call(x, {}, {}, 0, logarithm);
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, bool logarithm) {
    Tensor y = run(x, logarithm);
    ctx->save_for_backward({x, y});
    ctx->saved_data["logarithm"] = logarithm;
    ctx->set_materialize_grads(false);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    if (!dy[0].defined()) return variable_list(2);
    const auto saved = ctx->get_saved_variables();
    const bool logarithm = ctx->saved_data["logarithm"].toBool();
    if (final(dy)) {
      using F = Tensor(const Maybe&, const Maybe&, const Maybe&, const Tensor&, const Tensor&, int64_t, bool);
      static const auto kernel = op<F>("xfn_cpu::softmax_backward");
      at::AutoDispatchBelowADInplaceOrView below;
      return {kernel.call(logarithm ? Maybe(saved[0]) : Maybe(), {}, {}, saved[1], dy[0], 0, logarithm), Tensor()};
    }
    using F = Tensor(const Tensor&, const Maybe&, const Maybe&, const Tensor&, const Maybe&, Text, int64_t);
    static const auto family = op<F>("xfn::softmax_backward"), log_family = op<F>("xfn::log_softmax_backward");
    return {(logarithm ? log_family : family).call(saved[0], {}, {}, saved[1], dy[0], {}, 1), Tensor()};
  }
};

Tensor norm(const Tensor& x, const Maybe& weight, const Maybe& bias, double eps, bool centered) {
  if (!rows(x, 1) || !shared(weight, x) || !shared(bias, x) || !std::isfinite(eps)) return {};
  return varies({x, weight, bias}) ? Norm::apply(x, weight, bias, eps, centered)
                                   : std::get<0>(Norm::run(x, weight, bias, eps, centered, false));
}
Tensor layer_norm(const Tensor& x, const Maybe& weight, const Maybe& bias, double eps) {
  return norm(x, weight, bias, eps, true);
}
Tensor rms_norm(const Tensor& x, const Maybe& weight, double eps) { return norm(x, weight, {}, eps, false); }

template <bool logarithm> Tensor softmax(const Tensor& x) {
  if (!rows(x, 2)) return {};
  return recording() && x.requires_grad() ? Softmax::apply(x, logarithm) : Softmax::run(x, logarithm);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(xfn_autograd, m) {
  m.def("layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor", &layer_norm);
  m.def("rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor", &rms_norm);
  m.def("softmax(Tensor x) -> Tensor", &softmax<false>);
  m.def("log_softmax(Tensor x) -> Tensor", &softmax<true>);
}
