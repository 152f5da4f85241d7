// How a dtype takes part in products: what it is stored as (T), summed in (S), and how many numbers share a word (PAIR).
#pragma once

namespace {

template <class T_, class S_> struct Numbers {  // each widened to one word
  typedef T_ T;
  typedef S_ S;
  typedef Numbers<S, S> Words;  // the same once widened
  static constexpr int PAIR = 1;
  static constexpr bool in_place = std::is_same_v<T, S>;
  static constexpr int degree = sizeof(T) == 2 ? 4 : 5;  // of the polynomial in exp2
  static INLINE Vec<S> mac(Vec<S> a, Vec<S> b, Vec<S> c) { return a * b + c; }
  static INLINE Vec<S> mac(const S* a, Vec<S> b, Vec<S> c) { return mac(splat(*a), b, c); }
  static INLINE Vec<S> words(const T* p, int count) { return widen(p, count); }
  template <class Number> static INLINE Vec<S> word(const Number& number) { return number(0); }
  static INLINE void write(Vec<S> words, T* to, bool far = false) { put(words, to, L<S>, far); }
  static INLINE void two(Vec<S> a, Vec<S> b, S* to, long row) { store(to, a), store(to + row, b); }
  // `wide` vectors of a row of values, the last of them with `count` numbers.
  template <int wide> static INLINE void values(const T* p, const T*, int count, Vec<S>* to) {
#pragma GCC unroll 4
    for (int i = 0; i < wide; i++) to[i] = widen(p + i * L<S>, i + 1 < wide ? L<S> : count);
  }
};

#ifdef AVX512BF16
struct Pairs {  // of bfloat16, multiplied and summed two by two
  typedef bf16 T;
  typedef float S;
  typedef Pairs Words;
  static constexpr int PAIR = 2;
  static constexpr bool in_place = true;
  static constexpr int degree = 3;
  static INLINE Vec<S> mac(Vec<S> a, Vec<S> b, Vec<S> c) {
    return (Vec<S>)_mm512_dpbf16_ps((__m512)c, (__m512bh)(__m512)a, (__m512bh)(__m512)b);
  }
  static INLINE Vec<S> mac(const S* a, Vec<S> b, Vec<S> c) {  // g++ 12 does not broadcast within this instruction
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(b), "m"(*a));
    return c;
  }
  static INLINE Vec<S> words(const T* p, int count) {
    const __mmask32 all = 0xffffffff;
    return (Vec<S>)(__m512)_mm512_maskz_loadu_epi16(count >= 2 * L<S> ? all : ~(all << count), p);
  }
  static INLINE __m512i order(short step) {  // 0, step, 1, step + 1 ...
    const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_add_epi32(_mm512_mullo_epi32(count, _mm512_set1_epi32(0x10001)), _mm512_set1_epi32(step << 16));
  }
  static INLINE Vec<S> both(Vec<S> a, Vec<S> b) {  // word i holds a[i] and b[i]
    return (Vec<S>)(__m512)_mm512_permutexvar_epi16(order(16), (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
  }
  template <class Number> static INLINE Vec<S> word(const Number& number) {
    const Vec<S> a = number(0);
    return both(a, number(1));
  }
  static INLINE void write(Vec<S> words, T* to, bool far = false) { put(words, (S*)to, L<S>, far); }
  static INLINE void two(Vec<S> a, Vec<S> b, S* to, long) { store(to, both(a, b)); }
  // Words of a row and the next: word i of two holds feature i of both, and the second word behind.
  static INLINE void weave(Vec<S> a, Vec<S> b, S* to, bool second) {
    const __m512i i = order(32), j = _mm512_add_epi16(i, _mm512_set1_epi16(16));
    store(to, (Vec<S>)(__m512)_mm512_permutex2var_epi16((__m512i)a, i, (__m512i)b));
    if (second) store(to + L<S>, (Vec<S>)(__m512)_mm512_permutex2var_epi16((__m512i)a, j, (__m512i)b));
  }
  // Two rows of numbers as rows of pairs, if there are such, and as words that hold a number of each, if those.
  static INLINE void pair(Vec<S> a, Vec<S> b, S* first, S* second, S* both) {
    const __m512i w = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
    if (first) _mm256_storeu_si256((__m256i*)first, _mm512_castsi512_si256(w));
    if (second) _mm256_storeu_si256((__m256i*)second, _mm512_extracti64x4_epi64(w, 1));
    if (both) store(both, (Vec<S>)(__m512)_mm512_permutexvar_epi16(order(16), w));
  }
  // `wide` vectors of two rows of values as pairs, by twos; the last have `count` numbers. The second row may be absent.
  template <int wide> static INLINE void values(const T* p, const T* next, int count, Vec<S>* to) {
#pragma GCC unroll 4
    for (int i = 0; i < wide; i++) {
      const long at = i * 2 * L<S>;
      const int some = i + 1 < wide ? 2 * L<S> : count;
      const Vec<S> a = words(p + at, some), b = next ? words(next + at, some) : Vec<S>{};
      weave(a, b, (S*)(to + 2 * i), true);
    }
  }
  static INLINE void narrow(Vec<S> v, S* row, long at) {
    _mm256_storeu_si256((__m256i*)((bf16*)row + at), (__m256i)_mm512_cvtneps_pbh((__m512)v));
  }
};
#endif

constexpr int LANES = 64;  // queries in a tile

INLINE long up(long n, long to) { return (n + to - 1) / to * to; }

// Memory for one task, handed out from front to back; with no front it only counts.
struct Arena {
  char* front;
  size_t used = 0;
  template <class S> S* take(long count) {
    S* p = (S*)(front + used);
    used += up(count * sizeof(S), 64);
    return p;
  }
};

// What is to be read and written next, fetched little by little while something else is computed.
struct Ahead {
  struct Rows {
    const char* at;
    long step, bytes, left;
  } rows[12];
  int found = 0, now = 0;
  static constexpr int SHIFT = 20;
  long rate = 0, credit = 0;  // rows for a step of a product, and those that are due, times 1 << SHIFT

  void add(const void* data, size_t size, long start, long step, long count, long features) {
    if (data && count > 0 && found < 12)
      rows[found++] = {(const char*)data + start * size, (long)(step * size), (long)(features * size), count};
  }
  template <class Kind> void add(const Sequence& t, long b, long head, long from, long count, long features) {
    if (t.data)
      add(t.data, sizeof(typename Kind::T), t.batch[b] + head * t.head + from * t.length, t.length, count, features);
  }
  // All of it is to be here after so many steps.
  void within(long steps) {
    long count = 0;
    for (int i = 0; i < found; i++) count += rows[i].left;
    rate = (std::min(count, steps) << SHIFT) / std::max(1l, steps);
  }
  INLINE void operator()(long steps) {
    if (now >= found) return;
    credit += steps * rate;
    go(credit >> SHIFT);
    credit &= (1 << SHIFT) - 1;
  }
  INLINE void go(long n) {
    while (n > 0 && now < found) {
      Rows& r = rows[now];
      const long some = std::min(n, r.left), step = r.step, bytes = r.bytes;
      const char* at = r.at;
      for (long j = 0; j < some; j++, at += step)
        for (long i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
      r.at = at, n -= some;
      if ((r.left -= some) == 0) now++;
    }
  }
};

// A row that is needed soon, of those that lie too far apart for a prefetcher.
constexpr long SOON = 16;
template <class T> INLINE void fetch(const T* row, long features) {
  for (long f = 0; f < features; f += 64 / (long)sizeof(T)) __builtin_prefetch(row + f, 0, 2);
}

// Rows of features as words of pairs of rows: word (i, f) holds f of rows 2i and 2i + 1. Without pairs, widened rows.
template <class Kind, class T = typename Kind::T, class S = typename Kind::S>
void interleave(const T* const* rows, long count, long features, S* to, long stride) {
  constexpr int l = L<S>;
  if constexpr (Kind::PAIR == 1) {
    for (long i = 0; i < count; i++)
      for (long f = 0; f < features; f += l)
        store(to + i * stride + f, rows[i] ? widen(rows[i] + f, features - f) : Vec<S>{});
  } else {
    for (long i = 0; i < count; i += 2)
      for (long f = 0; f < features; f += 2 * l) {
        const auto words = [&](long i) {
          return i < count && rows[i] ? Kind::words(rows[i] + f, (int)(features - f)) : Vec<S>{};
        };
        Kind::weave(words(i), words(i + 1), to + i / 2 * stride + f, features - f > l);
      }
  }
}

// A key-side tensor of one head, from key `first` on.
template <class Kind> struct Keys {
  typedef typename Kind::T T;
  typedef typename Kind::S S;
  const S *rows = nullptr, *columns = nullptr;  // words by feature; words by key
  long row = 0, column = 0;                     // from one key to the next; from one word of keys to the next
  long first = 0, features = 0;

  explicit operator bool() const { return rows; }
  const S* at(long n) const { return rows + (n - first) * row; }
  const S* pairs_at(long n) const { return columns + (n - first) / Kind::PAIR * column; }
  long words() const { return (features + Kind::PAIR - 1) / Kind::PAIR; }

  // Keys [n0, n1); n0 is even. `by_key`: words by key are needed too. `often`: they are read by many queries, so that
  // rows far apart, which fall into few sets of a cache, are better brought together: as far as they are reached for,
  // since what is brought long before it is read has left the caches again.
  static Keys of(const Sequence& t, long b, long g, long n0, long n1, long features, bool by_key, bool often,
                 Arena& arena) {
    Keys k;
    if (!t.data) return k;
    k.first = n0, k.features = features;
    const bool apart = often && t.length != features;
    const bool even = features % Kind::PAIR == 0 && t.length % Kind::PAIR == 0 && !apart;
    const long width = up(features, L<S>);
    k.row = up(k.words(), L<S>), k.column = width;
    S* rows = Kind::in_place && even ? nullptr : arena.take<S>((n1 - n0) * k.row);
    S* columns = Kind::PAIR == 1 || !by_key ? nullptr : arena.take<S>((n1 - n0 + 1) / 2 * width);
    if (!arena.front) return Keys();
    k.from = (const T*)t.data + t.batch[b] + g * t.head + n0 * t.length, k.length = t.length, k.end = n1 - n0;
    k.rows = k.own_rows = rows, k.columns = k.own_columns = columns;
    if (!rows) k.rows = (const S*)k.from, k.row = t.length / Kind::PAIR;
    if (Kind::PAIR == 1) k.columns = k.rows, k.column = k.row;
    return k;
  }

  // What a product of rows reads after those of keys before n: of keys up to `end`, and then from key `then` on. And
  // words by key of keys from n on, while rows are read.
  Soon soon(long n, long end, long then) const {
    return Soon::upto(at(n), row, std::bit_width(64 / sizeof(S)) - 1, end - n, at(then));
  }
  Soon values(long n) const {
    return {(const char*)pairs_at(n), column * (long)sizeof(S), std::bit_width(64 / sizeof(S) / Kind::PAIR) - 1};
  }

  // Keys before n are there.
  void reach(long n) {
    const long start = reached, till = std::min(up(n - first, 2), end);
    if (till <= start) return;
    reached = till;
    if (own_rows)
      for (long i = start; i < till; i++, fetch(from + (i + SOON) * length, features))
        for (long w = 0; w < words(); w += L<S>)
          store(own_rows + i * row + w,
                Kind::words(from + i * length + w * Kind::PAIR, (int)(features - w * Kind::PAIR)));
    if (own_columns)
      for (long i = start; i < till; i += 2) {
        fetch(from + (i + SOON) * length, features), fetch(from + (i + SOON + 1) * length, features);
        const T* two[2] = {from + i * length, i + 1 < end ? from + (i + 1) * length : nullptr};
        interleave<Kind>(two, 2, features, own_columns + i / 2 * column, column);
      }
  }

 private:
  const T* from = nullptr;
  S *own_rows = nullptr, *own_columns = nullptr;
  long length = 0, end = 0, reached = 0;  // of the source; keys behind the first
};

template <class Kind> struct Weights;

// [features][LANES] that products are added to; at first there is nothing.
template <class Kind> struct Sums {
  typedef typename Kind::S S;
  S* at;
  long features;
  long met = 0;  // bit v: whether vector v of lanes has something, of which there are up to 32

  // Whether there is something in vectors [v0, v1), all of them or none, before something is put there.
  bool add(int v0, int v1) {
    const long some = (1L << v1) - (1L << v0), there = met & some;
    met |= some;
    for (int v = v0; there && there != some && v < v1; v++)
      if (!(there >> v & 1)) clear(v);
    return there;
  }
  bool has(int v) const { return met >> v & 1; }
  void begin() { met = 0; }
  void end() {
    for (int v = 0; v < LANES / L<S>; v++)
      if (!has(v)) clear(v);
  }
  void clear(int v) const {
    for (long f = 0; f < features; f++) store(at + f * LANES + v * L<S>, Vec<S>{});
  }
  // Adds a block's products of values and weights. `beside`: as in gemm.
  template <class Tile, class Beside = Alone>
  INLINE void mix(const Tile& tile, const Keys<Kind>& v, const Weights<Kind>& w, const Beside& beside = {}) {
    if (!v) return;
    tile.sum([&](const auto& r) {
      const long l0 = r.v0 * L<S>;
      gemm<typename Kind::Words>(v.pairs_at(r.n + r.at), 1, v.column, w.keys + r.at / Kind::PAIR * LANES + l0, LANES,
                                 (r.rows + Kind::PAIR - 1) / Kind::PAIR, at + l0, LANES, features, (r.v1 - r.v0) * L<S>,
                                 add(r.v0, r.v1), beside);
    });
  }
  void shrink(int v, Vec<S> by) const {
    S* to = at + v * L<S>;
    for (long f = 0; has(v) && f < features; f++, to += LANES) store(to, load(to) * by);
  }
};

// A matrix [key][lane] of weights and what products take: pairs of lanes in a row, and pairs of keys in a lane. Without
// pairs all three are one.
template <class Kind> struct Weights {
  typedef typename Kind::S S;
  S *numbers, *lanes, *keys;
  bool read = false;  // the numbers are, too

  Weights(long block, bool as_lanes, bool as_keys, Arena& arena) {
    numbers = lanes = keys = arena.take<S>(block * LANES);
    if (Kind::PAIR == 2 && as_lanes) lanes = arena.take<S>(block * LANES / 2);
    if (Kind::PAIR == 2 && as_keys) keys = arena.take<S>(up(block, 2) * LANES / 2);
  }
  S* row(long n) const { return numbers + n * LANES; }
  // As it is multiplied: a half of a pair, where there are only those.
  INLINE Vec<S> number(long n, long at) const {
    if constexpr (Kind::PAIR == 1) {
      return load(row(n) + at);
    } else {
      const Vec<uint32_t> two = cast<Vec<uint32_t>>(load(keys + n / 2 * LANES + at));
      return cast<Vec<S>>(n % 2 ? two & 0xffff0000 : two << 16);
    }
  }
  // Rows before n, times numbers by lane.
  void shrink(long n, long at, Vec<S> by) const {
    if (read || Kind::PAIR == 1 || keys == numbers)
      for (long i = 0; i < n; i++) store(row(i) + at, load(row(i) + at) * by);
    if constexpr (Kind::PAIR == 2)
      if (keys != numbers)
        for (long i = 0; i < n / 2; i++) {
          const Vec<uint32_t> two = cast<Vec<uint32_t>>(load(keys + i * LANES + at));
          store(keys + i * LANES + at, Kind::both(cast<Vec<S>>(two << 16) * by, cast<Vec<S>>(two & 0xffff0000) * by));
        }
  }
  // Rows n and, if there are two, n + 1, in the forms that there are.
  INLINE void put(long n, long at, Vec<S> a, Vec<S> b, bool two) const {
    if (Kind::PAIR == 1 || read || (lanes == numbers && keys == numbers)) {
      store(row(n) + at, a);
      if (two) store(row(n + 1) + at, b);
    }
    if constexpr (Kind::PAIR == 2) {
      S* const row = lanes == numbers ? nullptr : lanes + (n * LANES + at) / 2;
      Kind::pair(a, b, row, row && two ? row + LANES / 2 : nullptr,
                 keys == numbers ? nullptr : keys + n / 2 * LANES + at);
    }
  }
};

}  // namespace
