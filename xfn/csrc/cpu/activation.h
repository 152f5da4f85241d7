// Activations and their slopes, as _core/activations.py defines them.
#pragma once

namespace {

template <class S> INLINE Vec<S> expv(Vec<S> x) { return exp2v<5, true>(x * (S)LOG2E); }
template <class S> INLINE Vec<S> sigmoidv(Vec<S> x) { return (S)1 / ((S)1 + expv<S>(-x)); }

// Half of erfc(x / √2) for x ≥ 0 over e^(-x²/2), by a minimax polynomial in 1 / (1 + 0.21 x), to 2e-8 of itself; or
// in 1 / (1 + 0.38 x), to 3.5e-5.
template <bool coarse> INLINE Vec<float> tail(Vec<float> x) {
  constexpr int degree = coarse ? 4 : 8;
  constexpr auto c = [] {
    if constexpr (coarse)
      return std::array{1.512253112e-01f, 1.578277512e-01f, 9.198500041e-02f, 1.888701581e-01f, -8.992574233e-02f};
    else
      return std::array{8.371157899e-02f, 8.506880514e-02f,  6.919252488e-02f, 1.248714081e-01f, -9.392223861e-02f,
                        3.493968718e-01f, -3.302498927e-01f, 2.835869339e-01f, -7.165598479e-02f};
  }();
  const Vec<float> t = 1.f / (1.f + (coarse ? .38f : .21f) * x);
  Vec<float> p = splat(c[degree]);
#pragma GCC unroll 8
  for (int i = degree - 1; i >= 0; i--) p = p * t + c[i];
  return p * t;
}

// The normal distribution function, and its density; coarse: to what half types show.
template <bool coarse> INLINE std::pair<Vec<float>, Vec<float>> normal(Vec<float> x) {
  const Vec<float> e = exp2v<coarse ? 4 : 5, true>(x * x * (float)(-.5 * LOG2E));
  const Vec<float> below = e * tail<coarse>(x < 0.f ? -x : x);
  return {x < 0.f ? below : 1.f - below, e * .3989422804f};
}
template <bool> INLINE std::pair<Vec<double>, Vec<double>> normal(Vec<double> x) {
  Vec<double> p, d;
  for (int i = 0; i < L<double>; i++) {
    p[i] = .5 * std::erfc(-x[i] * .7071067811865476);
    d[i] = std::exp(-.5 * x[i] * x[i]) * .3989422804014327;
  }
  return {p, d};
}

// By a minimax polynomial up to 0.7, to 2e-8 of itself, and beyond by the exponential.
INLINE Vec<float> tanhv(Vec<float> x) {
  const Vec<float> q = x * x, far = 1.f - 2.f / (1.f + expv<float>(x * 2.f));
  const Vec<float> c =
      -3.333318988e-1f + q * (1.332911028e-1f + q * (-5.355882878e-2f + q * (2.009188077e-2f + q * -5.138578735e-3f)));
  return q < .49f ? x + x * q * c : far;
}
INLINE Vec<double> tanhv(Vec<double> x) {
  for (int i = 0; i < L<double>; i++) x[i] = std::tanh(x[i]);
  return x;
}

template <Activation a, bool coarse, class S> INLINE Vec<S> activated(Vec<S> x) {
  const Vec<S> zero{}, positive = x > zero ? x : x <= zero ? zero : x;  // a NaN stays one
  if constexpr (a == Activation::relu) return positive;
  if constexpr (a == Activation::leaky_relu) return x > zero ? x : x * (S)0.01;
  if constexpr (a == Activation::gelu) return x * normal<coarse>(x).first;
  if constexpr (a == Activation::squared_relu) return positive * positive;
  if constexpr (a == Activation::star_relu) return positive * positive * (S)0.8944 - (S)0.4472;
  if constexpr (a == Activation::smelu) {
    const Vec<S> above = x + (S)2;
    return x > (S)2 ? x : above <= zero ? zero : above * above * (S)0.125;
  }
  if constexpr (a == Activation::silu) return x * sigmoidv<S>(x);
  if constexpr (a == Activation::sigmoid) return sigmoidv<S>(x);
  if constexpr (a == Activation::tanh) return tanhv(x);
  return x;
}

template <Activation a, bool coarse, class S> INLINE Vec<S> slope(Vec<S> x) {
  const Vec<S> zero{}, one = splat((S)1);
  if constexpr (a == Activation::relu) return x > zero ? one : zero;
  if constexpr (a == Activation::leaky_relu) return x > zero ? one : splat((S)0.01);
  if constexpr (a == Activation::gelu) {
    const auto [p, d] = normal<coarse>(x);
    return p + x * d;
  }
  if constexpr (a == Activation::squared_relu) return x > zero ? x * (S)2 : x <= zero ? zero : x;
  if constexpr (a == Activation::star_relu) return (x > zero ? x : x <= zero ? zero : x) * (S)(2 * 0.8944);
  if constexpr (a == Activation::smelu) {
    const Vec<S> above = x + (S)2;
    return x > (S)2 ? one : above <= zero ? zero : above * (S)0.25;
  }
  if constexpr (a == Activation::silu) {
    const Vec<S> s = sigmoidv<S>(x);
    return s * (one + x * (one - s));
  }
  if constexpr (a == Activation::sigmoid) {
    const Vec<S> s = sigmoidv<S>(x);
    return s * (one - s);
  }
  if constexpr (a == Activation::tanh) {
    const Vec<S> t = tanhv(x);
    return one - t * t;
  }
  return one;
}

// Numbers at `at`, in whole vectors, each replaced by what the activation makes of it, or by its slope there.
template <class S, bool slopes> void activate(Activation activation, S* at, long count, bool coarse) {
  const auto run = [&]<Activation a, bool roughly = false>() {
    for (long i = 0; i < count; i += L<S>) {
      const Vec<S> x = load(at + i);
      store(at + i, slopes ? slope<a, roughly, S>(x) : activated<a, roughly, S>(x));
    }
  };
  switch (activation) {
    case Activation::relu:
      return run.template operator()<Activation::relu>();
    case Activation::leaky_relu:
      return run.template operator()<Activation::leaky_relu>();
    case Activation::gelu:
      return coarse ? run.template operator()<Activation::gelu, true>() : run.template operator()<Activation::gelu>();
    case Activation::squared_relu:
      return run.template operator()<Activation::squared_relu>();
    case Activation::star_relu:
      return run.template operator()<Activation::star_relu>();
    case Activation::smelu:
      return run.template operator()<Activation::smelu>();
    case Activation::silu:
      return run.template operator()<Activation::silu>();
    case Activation::sigmoid:
      return run.template operator()<Activation::sigmoid>();
    case Activation::tanh:
      return run.template operator()<Activation::tanh>();
    default:
      if (slopes) run.template operator()<Activation::identity>();
  }
}

}  // namespace
