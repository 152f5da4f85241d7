// What stands between products without Python, reverse mode included: a bias and an activation, and a gate. Nothing is
// dropped here, nor added. Any other call gets nothing back, and takes the road through Python.
#pragma once
#include "swift.h"

namespace {

using namespace swift;

struct Activate : torch::autograd::Function<Activate> {
  static constexpr bool is_traceable = true;

  static Tensor run(const Tensor& x, const Maybe& bias, int64_t number) {
    using F = Tensor(const Tensor&, const Maybe&, const Maybe&, const Maybe&, int64_t, int64_t, int64_t);
    static const auto kernel = op<F>("xfn_cpu::dropout");
    at::AutoDispatchBelowADInplaceOrView below;
    return kernel.call(x, bias, {}, {}, 0, 0, number);
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Maybe& bias, std::string name, int64_t number) {
    ctx->save_for_backward({x, bias.value_or(Tensor())});
    ctx->saved_data["name"] = std::move(name), ctx->saved_data["number"] = number;
    ctx->set_materialize_grads(false);
    return run(x, bias, number);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    if (!dy[0].defined()) return variable_list(4);
    const auto saved = ctx->get_saved_variables();
    const Tensor& x = saved[0];
    const Maybe bias = maybe(saved[1]);
    const int64_t need = needed(ctx, {true, bias.has_value()});
    if (final(dy)) {
      using F = std::tuple<Tensor, Tensor>(const Tensor&, const Maybe&, const Maybe&, const Tensor&, int64_t, int64_t,
                                           int64_t, int64_t);
      static const auto kernel = op<F>("xfn_cpu::dropout_backward");
      at::AutoDispatchBelowADInplaceOrView below;
      auto [dx, dbias] = kernel.call(x, bias, {}, dy[0], 0, 0, ctx->saved_data["number"].toInt(), need);
      return wanted({dx, dbias}, need, 4);
    }
    using Y = Tensor(const Tensor&, const Maybe&, const Maybe&, const Maybe&, double, c10::string_view, Text);
    using F = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Maybe&, const Maybe&, const Maybe&, const Tensor&,
                                                 const Maybe&, double, c10::string_view, Text, int64_t);
    static const auto value = op<Y>("xfn::dropout_forward");
    static const auto family = op<F>("xfn::dropout_backward");
    const std::string name = ctx->saved_data["name"].toStringRef();
    const Tensor y = value.call(x, bias, {}, {}, 0, name, {});
    auto [dx, dbias, none] = family.call(x, bias, {}, {}, y, dy[0], 0, name, {}, need);
    return wanted({dx, dbias}, need, 4);
  }
};

struct Gate : torch::autograd::Function<Gate> {
  static constexpr bool is_traceable = true;

  static Tensor run(const Tensor& gate, const Tensor& up, const Maybe& gate_bias, const Maybe& up_bias) {
    using F = Tensor(const Tensor&, const Tensor&, const Maybe&, const Maybe&, const Maybe&, int64_t, int64_t);
    static const auto kernel = op<F>("xfn_cpu::swiglu");
    at::AutoDispatchBelowADInplaceOrView below;
    return kernel.call(gate, up, gate_bias, up_bias, {}, 0, 0);
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up, const Maybe& gate_bias,
                        const Maybe& up_bias) {
    ctx->save_for_backward({gate, up, gate_bias.value_or(Tensor()), up_bias.value_or(Tensor())});
    ctx->set_materialize_grads(false);
    return run(gate, up, gate_bias, up_bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    if (!dy[0].defined()) return variable_list(4);
    const auto saved = ctx->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1];
    const Maybe gate_bias = maybe(saved[2]), up_bias = maybe(saved[3]);
    const int64_t need = needed(ctx, {true, true, gate_bias.has_value(), up_bias.has_value()});
    using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
    if (final(dy)) {
      using F = Four(const Tensor&, const Tensor&, const Maybe&, const Maybe&, const Maybe&, const Tensor&, int64_t,
                     int64_t, int64_t);
      static const auto kernel = op<F>("xfn_cpu::swiglu_backward");
      at::AutoDispatchBelowADInplaceOrView below;
      auto [dgate, dup, dgate_bias, dup_bias] = kernel.call(gate, up, gate_bias, up_bias, {}, dy[0], 0, 0, need);
      return wanted({dgate, dup, dgate_bias, dup_bias}, need, 4);
    }
    using Y = Tensor(const Tensor&, const Tensor&, const Maybe&, const Maybe&, const Maybe&, double, Text);
    using F = Four(const Tensor&, const Tensor&, const Maybe&, const Maybe&, const Maybe&, const Tensor&, const Maybe&,
                   double, Text, int64_t);
    static const auto value = op<Y>("xfn::swiglu_forward");
    static const auto family = op<F>("xfn::swiglu_backward");
    const Tensor y = value.call(gate, up, gate_bias, up_bias, {}, 0, {});
    auto [dgate, dup, dgate_bias, dup_bias] = family.call(gate, up, gate_bias, up_bias, {}, y, dy[0], 0, {}, need);
    return wanted({dgate, dup, dgate_bias, dup_bias}, need, 4);
  }
};

bool line(const Maybe& t, const Tensor& x) { return shared(t, x) && (!t || t->scalar_type() == x.scalar_type()); }

Tensor activate(const Tensor& x, const Maybe& bias, c10::string_view name, int64_t number) {
  if (!rows(x, 2) || !line(bias, x)) return {};
  return varies({x, bias}) ? Activate::apply(x, bias, std::string(name), number) : Activate::run(x, bias, number);
}
Tensor gate(const Tensor& x, const Tensor& up, const Maybe& gate_bias, const Maybe& up_bias) {
  const bool alike = up.scalar_type() == x.scalar_type() && up.sizes() == x.sizes();
  if (!rows(x, 2) || !alike || !ordinary(up) || !line(gate_bias, x) || !line(up_bias, x)) return {};
  return varies({x, up, gate_bias, up_bias}) ? Gate::apply(x, up, gate_bias, up_bias)
                                             : Gate::run(x, up, gate_bias, up_bias);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(xfn_autograd, m) {
  m.def("dropout(Tensor x, Tensor? bias, str activation, int number) -> Tensor", &activate);
  m.def("swiglu(Tensor gate, Tensor up, Tensor? gate_bias, Tensor? up_bias) -> Tensor", &gate);
}
