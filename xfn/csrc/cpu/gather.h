// Products over entries: a row of features against rows that lie anywhere, and their weighted sum.
#pragma once

namespace {

// Lane i of the result is the sum of r[i]: neighbours are added, and vectors joined, until there is one.
template <class S> INLINE Vec<S> sums(Vec<S> (&r)[L<S>]) {
  constexpr int n = L<S>;
  Vec<Int<S>> even{}, odd{};
  for (int i = 0; i < n; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
#pragma GCC unroll 8
  for (int left = n / 2; left; left /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < left; i++)
      r[i] = __builtin_shuffle(r[2 * i], r[2 * i + 1], even) + __builtin_shuffle(r[2 * i], r[2 * i + 1], odd);
  return r[0];
}

// The largest of all lanes, or their sum: by halves.
template <class S, class Op> INLINE S across(Vec<S> v, const Op& op) {
#pragma GCC unroll 8
  for (int half = L<S> / 2; half; half /= 2) {
    Vec<Int<S>> other{};
    for (int i = 0; i < L<S>; i++) other[i] = i ^ half;
    v = op(v, __builtin_shuffle(v, other));
  }
  return v[0];
}

// to[j] (+)= a · row index[j], W vectors of words; `to` is filled up to a whole vector.
template <class Kind, int W, class S = typename Kind::S, class T = typename Kind::T>
__attribute__((noinline)) void dots(const S* a, const T* rows, long step, const int32_t* index, long n, S* to,
                                    bool add) {
  constexpr int l = L<S>, wide = l * Kind::PAIR;
  Vec<S> q[W];
#pragma GCC unroll 8
  for (int w = 0; w < W; w++) q[w] = load(a + w * l);
  const auto some = [&](const int32_t* at, S* found) INLINE_LAMBDA {
    Vec<S> r[l];
#pragma GCC unroll 16
    for (int i = 0; i < l; i++) {
      const T* row = rows + at[i] * step;
      r[i] = Vec<S>{};
#pragma GCC unroll 8
      for (int w = 0; w < W; w++) r[i] = Kind::mac(Kind::words(row + w * wide, wide), q[w], r[i]);
    }
    const Vec<S> sum = sums<S>(r);
    store(found, add ? load(found) + sum : sum);
  };
  long j = 0;
  for (; j + l <= n; j += l) some(index + j, to + j);
  if (j < n) {  // the last ones, as often as it takes
    int32_t last[l];
    for (int i = 0; i < l; i++) last[i] = index[std::min(j + i, n - 1)];
    some(last, to + j);
  }
}

// to += Σ weights[j] · row index[j], W vectors of numbers.
template <class Kind, int W, class S = typename Kind::S, class T = typename Kind::T>
__attribute__((noinline)) void mix(const S* weights, const T* rows, long step, const int32_t* index, long n, S* to) {
  constexpr int l = L<S>, SETS = W > 2 ? 1 : 4 / W;  // sums side by side, for each waits for the one before
  Vec<S> o[SETS][W];
#pragma GCC unroll 8
  for (int i = 0; i < SETS * W; i++) o[i / W][i % W] = i < W ? load(to + i * l) : Vec<S>{};
  const auto one = [&](long j, int set) INLINE_LAMBDA {
    const T* row = rows + index[j] * step;
    const Vec<S> weight = splat(weights[j]);
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) o[set][w] += weight * widen(row + w * l);
  };
  long j = 0;
  for (; j + SETS <= n; j += SETS) {
#pragma GCC unroll 4
    for (int set = 0; set < SETS; set++) one(j + set, set);
  }
  for (; j < n; j++) one(j, 0);
#pragma GCC unroll 8
  for (int w = 0; w < W; w++) {
#pragma GCC unroll 4
    for (int set = 1; set < SETS; set++) o[0][w] += o[set][w];
    store(to + w * l, o[0][w]);
  }
}

// Rows of features of one head, each filled up with zeros to whole vectors, so that products have no edge.
// Rows of one head lie far apart, where no prefetcher follows: they are fetched before their turn.
constexpr long AHEAD = 4;
template <int write = 0, class T> INLINE void fetch_row(const T* row, long features) {
  for (long f = 0; f < features; f += 64 / (long)sizeof(T)) __builtin_prefetch(row + f, write, 3);
}

template <class Kind> struct Gathered {
  typedef typename Kind::T T;
  typedef typename Kind::S S;
  static constexpr int WORDS = L<S> * Kind::PAIR;  // features in a vector of words
  static constexpr int MOST = REGISTERS == 32 ? 8 : 4;

  const T* rows = nullptr;
  long step = 0, vectors = 0, words = 0;  // vectors of numbers, and of words

  explicit operator bool() const { return rows; }
  static long width(long features) { return up(features, WORDS); }

  // `often`: a row is read several times, so that rows far apart are better brought together.
  static Gathered of(const Features& t, long b, long head, long count, long features, bool often, Arena& arena) {
    Gathered g;
    const long width = Gathered::width(features);
    const bool together = t.length == features && width == features;  // as they lie
    T* packed = arena.take<T>(t.data && !together ? count * width : 0);
    if (!t.data || !arena.front) return g;
    const T* from = (const T*)t.data + b * t.batch + head * t.head;
    g.vectors = (features + L<S> - 1) / L<S>, g.words = width / WORDS;
    if (together || (width == features && !often)) {
      g.rows = from, g.step = t.length;
      return g;
    }
    for (long i = 0; i < count; i++) {
      fetch_row(from + std::min(i + 16, count - 1) * t.length, features);
      std::memcpy(packed + i * width, from + i * t.length, features * sizeof(T));
      std::memset(packed + i * width + features, 0, (width - features) * sizeof(T));
    }
    g.rows = packed, g.step = width;
    return g;
  }

  // A row of words, to be multiplied with these; of the rows of a head, each in its turn.
  static void pack(const Features& t, long b, long head, long i, long end, long features, S* to) {
    const T* from = (const T*)t.data + b * t.batch + i * t.length + head * t.head;
    fetch_row(from + std::min(AHEAD, end - 1 - i) * t.length, features);
    for (long f = 0; f < features; f += WORDS)
      store(to + f / Kind::PAIR, Kind::words(from + f, (int)std::min<long>(WORDS, features - f)));
  }

  void dot(const S* a, const int32_t* index, long n, S* to) const {
    by_widths(words, [&]<int W>(std::integral_constant<int, W>, long w) {
      dots<Kind, W>(a + w * L<S>, rows + w * WORDS, step, index, n, to, w > 0);
    });
  }
  void add(const S* weights, const int32_t* index, long n, S* to) const {
    by_widths(vectors, [&]<int W>(std::integral_constant<int, W>, long w) {
      mix<Kind, W>(weights, rows + w * L<S>, step, index, n, to + w * L<S>);
    });
  }

 private:
  // part(W, w) for vectors [w, w + W), as many at a time as registers hold, until there are `count`.
  template <class Part> static INLINE void by_widths(long count, const Part& part) {
    for (long w = 0; w < count;) {
      const auto next = [&]<int W>(std::integral_constant<int, W> width) {
        part(width, w);
        w += W;
      };
      if (MOST >= 8 && count - w >= 8)
        next(std::integral_constant<int, MOST>{});
      else if (count - w >= 4)
        next(std::integral_constant<int, 4>{});
      else if (count - w >= 2)
        next(std::integral_constant<int, 2>{});
      else
        next(std::integral_constant<int, 1>{});
    }
  }
};

}  // namespace
