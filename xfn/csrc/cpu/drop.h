// Bias, activation, dropout and residual: y = residual + keep / (1 − p) activation(x + bias).
#pragma once

namespace {

// Of two vectors of 64-bit words, the products of their lower halves.
INLINE Vec<uint64_t> lower_product(Vec<uint64_t> a, uint64_t b) {
#if defined(AVX512)
  return (Vec<uint64_t>)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64((int64_t)b));
#elif defined(F16C)  // AVX2
  return (Vec<uint64_t>)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x((int64_t)b));
#else
  return (a & 0xffffffff) * b;
#endif
}

constexpr int DRAWN = 8 * L<uint64_t>;  // lanes of 16 bits that one call of `draw` fills

// As `philox` in tile.h does for one group of eight columns, at (n8, m, 0, 0), for as many as a vector has words.
INLINE void draw(const int64_t* key, long n8, long m, uint16_t* to) {
  typedef Vec<uint64_t> V;
  V c0, c1 = splat((uint64_t)m), c2{}, c3{};
  for (int i = 0; i < L<uint64_t>; i++) c0[i] = n8 + i;
  uint32_t k0 = (uint32_t)key[0], k1 = (uint32_t)key[1];
#pragma GCC unroll 7
  for (int round = 0; round < 7; round++) {  // the upper halves hold rubbish, which no product reads
    const V x = lower_product(c0, 0xD2511F53), y = lower_product(c2, 0xCD9E8D57);
    c0 = y >> 32 ^ c1 ^ (uint64_t)k0, c1 = y, c2 = x >> 32 ^ c3 ^ (uint64_t)k1, c3 = x;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  const V a = (c0 & 0xffffffff) | c1 << 32, b = (c2 & 0xffffffff) | c3 << 32;
  Vec<int64_t> low{}, high{};
  for (int i = 0; i < L<uint64_t>; i++) {
    low[i] = i / 2 + i % 2 * L<uint64_t>;
    high[i] = low[i] + L<uint64_t> / 2;
  }
  const V first = __builtin_shuffle(a, b, low), second = __builtin_shuffle(a, b, high);
  std::memcpy(to, &first, BYTES), std::memcpy((char*)to + BYTES, &second, BYTES);
}

constexpr long COLUMNS = 1024;  // of a row, which the nearest cache holds

// Rows of which a part may be dropped.
template <class T> struct Drawn : RowTask<T> {
  typedef typename RowTask<T>::S S;
  using RowTask<T>::p;
  uint16_t* bits;

  Drawn(const RowProblem& p, int64_t index, Arena& arena)
      : RowTask<T>(p, index), bits(arena.take<uint16_t>(COLUMNS + DRAWN)) {}

  // The bits of columns [at, at + count) of a row.
  void choose(long r, long at, long count) const {
    if (p.key)
      for (long e = 0; e < count; e += DRAWN) draw(p.key + this->part * p.key_part, (at + e) / 8, r, bits + e);
  }
  // v, grown where it is kept.
  INLINE Vec<S> kept(Vec<S> v, long e) const {
    if (!p.key) return v;
    typedef uint16_t Lanes __attribute__((vector_size(2 * L<S>)));
    Lanes lanes;
    std::memcpy(&lanes, bits + e, sizeof lanes);
    return __builtin_convertvector(lanes, Vec<Int<S>>) >= (Int<S>)p.threshold ? v * (S)p.grow : Vec<S>{};
  }
};

template <class T> struct Drop : Drawn<T> {
  typedef typename RowTask<T>::S S;
  using RowTask<T>::p;
  S* moved;
  const S* bias;

  Drop(const RowProblem& p, int64_t index, Arena& arena)
      : Drawn<T>(p, index, arena), moved(arena.take<S>(COLUMNS + L<S>)), bias(this->shared(p.bias)) {}

  // Columns [at, at + count) of a row: x + bias in `moved`, and the row's bits.
  void begin(long r, long at, long count) const {
    const T* x = this->row(p.x, r) + at;
    each<S>(count, [&, to = moved, line = bias ? bias + at : nullptr](long e, auto some) INLINE_LAMBDA {
      const Vec<S> v = widen(x + e, some);
      store(to + e, line ? v + widen(line + e, some) : v);
    });
    this->choose(r, at, count);
  }

  // From columns at `at` to those whose turn is next, in this row or the next one.
  long soon(const Grid& g, long at) const { return at + COLUMNS < p.E ? COLUMNS : g.row - at; }

  void forward() const {
    const bool far = p.far;
    for (long r = this->first; r < this->last; r++)
      for (long at = 0; at < p.E; at += COLUMNS) {
        const long count = std::min(COLUMNS, p.E - at);
        begin(r, at, count);
        activate<S, false>(p.activation, moved, count, sizeof(T) == 2);
        const T* residual = p.residual.data ? this->row(p.residual, r) + at : nullptr;
        T* y = this->out(r) + at;
        const T* const next = this->row(p.x, r) + at + soon(p.x, at);
        each<S>(count, [&](long e, auto some) INLINE_LAMBDA {
          ahead(next + e);
          const Vec<S> v = this->kept(load(moved + e), e);
          put(residual ? v + widen(residual + e, some) : v, y + e, some, far);
        });
      }
  }

  void backward() const {
    S* const dbias = this->sum(p.dbias);
    const bool far = p.far;
    for (long r = this->first; r < this->last; r++)
      for (long at = 0; at < p.E; at += COLUMNS) {
        const long count = std::min(COLUMNS, p.E - at);
        begin(r, at, count);
        const bool bent = p.activation != Activation::identity;
        if (bent) activate<S, true>(p.activation, moved, count, sizeof(T) == 2);
        const T* dy = this->row(p.dy, r) + at;
        T* dx = p.out ? this->out(r) + at : nullptr;
        const T *const next = this->row(p.x, r) + at + soon(p.x, at), *const then = dy + soon(p.dy, at);
        each<S>(count, [&](long e, auto some) INLINE_LAMBDA {
          ahead(next + e), ahead(then + e);
          const Vec<S> d = this->kept(widen(dy + e, some), e), v = bent ? d * load(moved + e) : d;
          if (dx) put(v, dx + e, some, far);
          if (dbias) narrow(widen(dbias + at + e, some) + v, dbias + at + e, some);
        });
      }
  }
};

}  // namespace
