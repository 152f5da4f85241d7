// What the plainest calls of ops share: who may take the road without Python.
//
// torch's autograd has no stable ABI, so this library is for one release of torch, which its file is named after.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "tensors.h"

namespace swift {

using Text = std::optional<c10::string_view>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto AUTOGRAD = c10::autograd_dispatch_keyset_with_ADInplaceOrView;

template <class F> c10::TypedOperatorHandle<F> op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

// Whether the dispatcher would find nothing else to do: no transform, mode, tracing or autocast.
inline bool alone() {
  const auto on = c10::impl::tls_local_dispatch_key_set();
  const auto looks_on = AUTOGRAD | c10::DispatchKeySet(c10::DispatchKey::VmapMode);  // torch's older vmap, of others
  return on.included_ - looks_on == c10::default_included_set - looks_on &&
         on.excluded_ - looks_on == c10::default_excluded_set;
}
// Whether autograd looks on: it does not inside the kernel of another op.
inline bool recording() {
  return at::GradMode::is_enabled() && !c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::AutogradCPU);
}
// Whether it would record a call of these, of which some may be absent.
inline bool varies(std::initializer_list<Maybe> all) {
  bool some = false;
  for (const Maybe& t : all) some = some || (t && t->requires_grad());
  return some && recording();
}
// Whether nothing hides behind a tensor, not even a tangent; nor behind one that is absent.
inline bool ordinary(const Tensor& t) {
  if (!t.defined()) return true;
  const auto keys = t.key_set() - AUTOGRAD - c10::autocast_dispatch_keyset;
  return keys == c10::DispatchKeySet(c10::DispatchKey::CPU) && !t._fw_grad(0).defined();
}
// Whether nobody differentiates again what is made of these cotangents.
inline bool final(const variable_list& dy) {
  bool all = !at::GradMode::is_enabled() && alone();
  for (const Tensor& t : dy) all = all && ordinary(t);
  return all;
}

inline bool floating(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble;
}
// Whether x is rows that an op without Python takes.
inline bool rows(const Tensor& x, int64_t rank) {
  return alone() && ordinary(x) && floating(x.scalar_type()) && x.dim() >= rank && x.numel();
}
// Whether t is a line that rows of x share, in their dtype or that of their sums; or absent.
inline bool shared(const Maybe& t, const Tensor& x) {
  if (!t) return true;
  const bool fits = t->scalar_type() == x.scalar_type() || (t->scalar_type() == at::kFloat && x.element_size() < 4);
  return fits && ordinary(*t) && t->dim() == 1 && t->size(0) == x.size(-1);
}
inline Maybe maybe(const Tensor& t) { return t.defined() ? Maybe(t) : Maybe(); }

// A bit for each of the first inputs whose gradient is wanted, of those that were `given`: autograd counts no others.
inline int64_t needed(AutogradContext* ctx, std::initializer_list<bool> given) {
  int64_t need = 0, input = 0, edge = 0;
  for (const bool some : given) {
    if (some) need |= (int64_t)ctx->needs_input_grad(edge++) << input;
    input++;
  }
  return need;
}
// Those gradients, among all `inputs` of a call.
inline variable_list wanted(variable_list dx, int64_t need, size_t inputs) {
  for (size_t i = 0; i < dx.size(); i++)
    if (!(need >> i & 1)) dx[i] = Tensor();
  dx.resize(inputs);
  return dx;
}

}  // namespace swift
