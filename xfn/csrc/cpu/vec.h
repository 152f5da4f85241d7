// Vectors of one register, in GCC's vector extensions: one source for every instruction set. BYTES is their width.
#pragma once

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace {

template <class S> struct VecOf {
  typedef S type __attribute__((vector_size(BYTES)));
};
template <class S> using Vec = typename VecOf<S>::type;
template <class S> constexpr int L = BYTES / sizeof(S);
template <class S> using Int = std::conditional_t<sizeof(S) == 8, int64_t, int32_t>;

typedef _Float16 f16;
struct bf16 {
  uint16_t bits;
};

template <class To, class From> INLINE To cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
template <class S> INLINE Vec<S> load(const S* p) {
  Vec<S> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class S> INLINE void store(S* p, Vec<S> v) { std::memcpy(p, &v, sizeof v); }
template <class S> INLINE Vec<S> splat(S x) { return x - Vec<S>{}; }  // x - 0 is x, and costs nothing; x + 0 is not
// Past the caches where that can be done, for what nobody will read soon; behind a task there is a fence.
template <class S> INLINE void stream(S* p, Vec<S> v) {
#ifdef AVX512
  if (((uintptr_t)p & 63) == 0) return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#endif
  store(p, v);
}
INLINE void ahead(const void* p) { __builtin_prefetch(p, 0, 2); }  // into the second cache
INLINE void claim(const void* p) { __builtin_prefetch(p, 1, 2); }  // for what is written soon
INLINE void fence() {
#ifdef AVX512
  _mm_sfence();
#endif
}
template <class V> INLINE V larger(V a, V b) { return a > b ? a : b; }
template <class V> INLINE V smaller(V a, V b) { return a < b ? a : b; }
template <class V> INLINE bool any(V mask) {  // of a comparison's lanes
#ifdef AVX512
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
  uint64_t words[BYTES / 8], some = 0;
  std::memcpy(words, &mask, BYTES);
  for (uint64_t word : words) some |= word;
  return some != 0;
#endif
}
template <class S> constexpr S infinity = std::numeric_limits<S>::infinity();

// The sum of all lanes, of halves and their halves.
template <class S, int step = L<S> / 2> INLINE S total(Vec<S> v) {
  if constexpr (step == 0)
    return v[0];
  else {
    Vec<Int<S>> other{};
    for (int i = 0; i < L<S>; i++) other[i] = i ^ step;
    return total<S, step / 2>(v + __builtin_shuffle(v, other));
  }
}

// The largest of all lanes, in each of them.
template <class S, int step = 1> INLINE Vec<S> highest(Vec<S> x) {
  if constexpr (step < L<S>) {
    Vec<Int<S>> other{};
    for (int i = 0; i < L<S>; i++) other[i] = i ^ step;
    return highest<S, step * 2>(larger(__builtin_shuffle(x, other), x));
  }
  return x;
}

// Bit j: whether the j-th of 16 booleans is true.
INLINE int truths(const bool* d) {
#ifdef AVX512
  const __m128i x = _mm_loadu_si128((const __m128i*)d);
  return _mm_test_epi8_mask(x, x);
#else
  uint64_t eight[2];
  std::memcpy(eight, d, 16);
  constexpr uint64_t gather = 0x0102040810204080;  // byte j to bit 56 + j
  return (int)(eight[0] * gather >> 56 | eight[1] * gather >> 56 << 8);
#endif
}

// 2ˣ, by a minimax polynomial on [-1/2, 1/2] and the exponent's bits: to 9e-8 of degree 5, to 2.8e-6 of degree 4
// and 1e-4 of degree 3, which half types do not see, and exact at 0. Without the guard, −∞ gives NaN, and large negative numbers still 0.
template <int degree, bool guard> INLINE Vec<float> exp2v(Vec<float> x) {
  constexpr std::array<float, 6> c =
      degree == 5   ? std::array{1.f, .6931469776f, .2402224208f, 5.550733750e-2f, 9.671513044e-3f, 1.326472606e-3f}
      : degree == 4 ? std::array{1.f, .6931241928f, .2402409865f, 5.590642891e-2f, 9.582852403e-3f, 0.f}
                    : std::array{1.f, .6932829283f, .2422109619f, 5.500893342e-2f, 0.f, 0.f};
#ifdef AVX512
  const __m512 t = guard ? _mm512_max_ps(_mm512_set1_ps(-200), (__m512)x) : (__m512)x;  // a NaN stays one
  const __m512 whole = _mm512_maskz_roundscale_ps((__mmask16)-1, t, 0);
  const Vec<float> f = (Vec<float>)_mm512_sub_ps(t, whole);
#else
  Vec<float> t = x > -127.f ? x : splat(-127.f);
  t = t < 128.f ? t : splat(128.f);
  const Vec<int32_t> power = __builtin_convertvector(t + (t < 0.f ? splat(-.5f) : splat(.5f)), Vec<int32_t>);
  const Vec<float> f = t - __builtin_convertvector(power, Vec<float>);
#endif
  Vec<float> p = splat(c[degree]);
#pragma GCC unroll 8
  for (int i = degree - 1; i >= 0; i--) p = p * f + c[i];
#ifdef AVX512
  return (Vec<float>)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)p, whole);
#else
  const Vec<int32_t> half = power >> 1;  // in two steps, for 2¹²⁸ overflows and 2⁻¹²⁷ has no exponent
  const Vec<float> a = cast<Vec<float>>((half + 127) << 23), b = cast<Vec<float>>((power - half + 127) << 23);
  const Vec<float> y = x < -126.f ? splat(0.f) : p * a * b;
  return x != x ? x : y;
#endif
}
template <int, bool> INLINE Vec<double> exp2v(Vec<double> x) {
  for (int i = 0; i < L<double>; i++) x[i] = std::exp2(x[i]);
  return x;
}

// log x of positive normal numbers, by the odd series of (m − 1) / (m + 1) with m in [1/√2, √2).
INLINE Vec<float> logv(Vec<float> x) {
  const Vec<int32_t> b = cast<Vec<int32_t>>(x), e = (b - 0x3f3504f3) >> 23;
  const Vec<float> m = cast<Vec<float>>(b - (e << 23)), t = (m - 1.f) / (m + 1.f), q = t * t;
  const Vec<float> y = t * (2.f + q * (2 / 3.f + q * (2 / 5.f + q * (2 / 7.f + q * (2 / 9.f)))));
  return x - x + (__builtin_convertvector(e, Vec<float>) * .6931471806f + y);
}
INLINE Vec<double> logv(Vec<double> x) {
  for (int i = 0; i < L<double>; i++) x[i] = std::log(x[i]);
  return x;
}

// The square of L x L numbers in r, transposed by log2(L) rounds of exchanges.
template <class S, int step = 1> INLINE void transpose(Vec<S> (&r)[L<S>]) {
  constexpr int n = L<S>;
  if constexpr (step < n) {
    Vec<Int<S>> first{}, second{};
    for (int i = 0; i < n; i++) {
      first[i] = i & step ? n + i - step : i;
      second[i] = i & step ? n + i : i + step;
    }
#pragma GCC unroll 16  // in registers
    for (int i = 0; i < n; i++)
      if (!(i & step)) {
        const Vec<S> a = r[i], b = r[i + step];
        r[i] = __builtin_shuffle(a, b, first);
        r[i + step] = __builtin_shuffle(a, b, second);
      }
    transpose<S, step * 2>(r);
  }
}

// Numbers as they are stored, and back. A row of `count` < L numbers is filled up with zeros.
template <class N> struct HalfOf {
  typedef N type __attribute__((vector_size(BYTES / 2)));
};
INLINE Vec<float> widen(const float* p) { return load(p); }
INLINE Vec<double> widen(const double* p) { return load(p); }
INLINE Vec<float> widen(const bf16* p) {
  typename HalfOf<uint16_t>::type v;
  std::memcpy(&v, p, sizeof v);
  return cast<Vec<float>>(__builtin_convertvector(v, Vec<uint32_t>) << 16);
}
INLINE Vec<float> widen(const f16* p) {
#if defined(AVX512)
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(F16C)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vec<float> v{};
  for (int i = 0; i < L<float>; i++) v[i] = (float)p[i];
  return v;
#endif
}
template <class T> INLINE auto widen(const T* p, int count) {
  if (count >= BYTES / (int)sizeof(widen(p)[0])) return widen(p);
#if defined(AVX512)
  const __m512i row = _mm512_maskz_loadu_epi8((1ull << count * sizeof(T)) - 1, p);
  return widen((const T*)&row);
#else
  T row[BYTES / sizeof(widen(p)[0])] = {};
  std::memcpy(row, p, count * sizeof(T));
  return widen(row);
#endif
}

INLINE void narrow(Vec<float> v, float* p) { store(p, v); }
INLINE void narrow(Vec<double> v, double* p) { store(p, v); }
INLINE void narrow(Vec<float> v, bf16* p) {
#ifdef AVX512BF16
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
  const Vec<uint32_t> b = cast<Vec<uint32_t>>(v), rounded = b + 0x7fff + (b >> 16 & 1);
  const Vec<uint32_t> kept = v == v ? rounded : (b | 0x400000);  // a NaN stays one
  const auto half = __builtin_convertvector(kept >> 16, typename HalfOf<uint16_t>::type);
  std::memcpy(p, &half, sizeof half);
#endif
}
INLINE void narrow(Vec<float> v, f16* p) {
#if defined(AVX512)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, 0));
#elif defined(F16C)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, 0));
#else
  for (int i = 0; i < L<float>; i++) p[i] = (f16)v[i];
#endif
}
template <class V, class T> INLINE void narrow(V v, T* p, int count) {
  if (count >= (int)(sizeof v / sizeof v[0])) return narrow(v, p);
  T row[sizeof v / sizeof v[0]];
  narrow(v, row);
  std::memcpy(p, row, count * sizeof(T));
}

// As narrow; a whole vector that is `far` goes past the caches, where that can be done.
template <class V, class T, class Count> INLINE void put(V v, T* p, Count count, [[maybe_unused]] bool far) {
#ifdef AVX512
  if (far && count == sizeof v / sizeof v[0] && (uintptr_t)p % (sizeof(T) * count) == 0) {
    if constexpr (sizeof(T) == sizeof v[0]) {
      stream(p, v);
    } else {
      alignas(32) T half[BYTES / sizeof v[0]];
      narrow(v, half);
      _mm256_stream_si256((__m256i*)p, _mm256_load_si256((const __m256i*)half));
    }
    return;
  }
#endif
  narrow(v, p, count);
}

}  // namespace
