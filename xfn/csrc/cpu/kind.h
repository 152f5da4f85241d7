// How a dtype takes part in products: what it is stored as (T), summed in (S), and how many numbers share a word (PAIR).
#pragma once

namespace {

template <class T_, class S_> struct Numbers {  // each widened to one word
  typedef T_ T;
  typedef S_ S;
  static constexpr int PAIR = 1;
  static constexpr bool in_place = std::is_same_v<T, S>;
  static constexpr int degree = sizeof(T) == 2 ? 4 : 5;  // of the polynomial in exp2
  static INLINE Vec<S> mac(Vec<S> a, Vec<S> b, Vec<S> c) { return a * b + c; }
  static INLINE Vec<S> words(const T* p, int count) { return widen(p, count); }
};

#ifdef AVX512BF16
struct Pairs {  // of bfloat16, multiplied and summed two by two
  typedef bf16 T;
  typedef float S;
  static constexpr int PAIR = 2;
  static constexpr bool in_place = true;
  static constexpr int degree = 4;
  static INLINE Vec<S> mac(Vec<S> a, Vec<S> b, Vec<S> c) {
    return (Vec<S>)_mm512_dpbf16_ps((__m512)c, (__m512bh)(__m512)a, (__m512bh)(__m512)b);
  }
  static INLINE Vec<S> words(const T* p, int count) {
    if (count >= 2 * L<S>) return load((const S*)p);
    T row[2 * L<S>] = {};
    std::memcpy(row, p, count * sizeof(T));
    return load((const S*)row);
  }
  static INLINE Vec<S> pair(Vec<S> a, Vec<S> b) {  // word i holds a[i] and b[i]
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (Vec<S>)(__m512)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
  }
  static INLINE void narrow(Vec<S> v, S* row, long at) { xfn::narrow(v, (bf16*)row + at); }
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

// What the next task will read and write, fetched little by little while this one computes. Small heads alone: the keys
// of a large one would be gone from the cache before they are used.
struct Ahead {
  struct Rows {
    const char* at;
    long step, bytes, left;
  } rows[10];
  int found = 0, now = 0;

  void add(const void* data, size_t size, long start, long step, long count, long features) {
    if (data && found < 10)
      rows[found++] = {(const char*)data + start * size, (long)(step * size), (long)(features * size), count};
  }
  template <class Kind> void add(const Sequence& t, long b, long head, long count, long features) {
    if (t.data) add(t.data, sizeof(typename Kind::T), t.batch[b] + head * t.head, t.length, count, features);
  }
  INLINE void go(long n) {
    for (; n > 0 && now < found; n--) {
      Rows& r = rows[now];
      for (long i = 0; i < r.bytes; i += 64) __builtin_prefetch(r.at + i, 0, 2);
      r.at += r.step;
      if (--r.left == 0) now++;
    }
  }
};

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
      for (long f = 0; f < features; f += l) {
        const Vec<S> a = rows[i] ? widen(rows[i] + f, features - f) : Vec<S>{};
        const Vec<S> b = i + 1 < count && rows[i + 1] ? widen(rows[i + 1] + f, features - f) : Vec<S>{};
        store(to + i / 2 * stride + f, cast<Vec<S>>(cast<Vec<uint32_t>>(a) >> 16 | cast<Vec<uint32_t>>(b)));
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
  // rows far apart, which fall into few sets of a cache, are better brought together.
  static Keys of(const Sequence& t, long b, long g, long n0, long n1, long features, bool by_key, bool often,
                 Arena& arena) {
    Keys k;
    k.first = n0, k.features = features;
    const bool absent = !t.data, apart = often && t.length != features;
    const bool even = features % Kind::PAIR == 0 && t.length % Kind::PAIR == 0 && !apart;
    const T* from = absent ? nullptr : (const T*)t.data + t.batch[b] + g * t.head + n0 * t.length;
    const long words = k.words(), row = up(words, L<S>), width = up(features, L<S>);
    S* rows = Kind::in_place && even ? nullptr : arena.take<S>((n1 - n0) * row);
    S* columns = Kind::PAIR == 1 || !by_key ? nullptr : arena.take<S>((n1 - n0 + 1) / 2 * width);
    if (absent || !arena.front) return Keys();
    if (!rows) {
      k.rows = (const S*)from, k.row = t.length / Kind::PAIR;
    } else {
      for (long n = 0; n < n1 - n0; n++)
        for (long w = 0; w < words; w += L<S>)
          store(rows + n * row + w, Kind::words(from + n * t.length + w * Kind::PAIR, (int)(features - w * Kind::PAIR)));
      k.rows = rows, k.row = row;
    }
    if (Kind::PAIR == 1) {
      k.columns = k.rows, k.column = k.row;
    } else if (by_key) {
      for (long n = 0; n < n1 - n0; n += 2) {
        const T* two[2] = {from + n * t.length, n + 1 < n1 - n0 ? from + (n + 1) * t.length : nullptr};
        interleave<Kind>(two, 2, features, columns + n / 2 * width, width);
      }
      k.columns = columns, k.column = width;
    }
    return k;
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
  // Rows n and, if there are two, n + 1, in the forms that there are.
  INLINE void put(long n, long at, Vec<S> a, Vec<S> b, bool two) const {
    if (Kind::PAIR == 1 || read || (lanes == numbers && keys == numbers)) {
      store(row(n) + at, a);
      if (two) store(row(n + 1) + at, b);
    }
    if constexpr (Kind::PAIR == 2) {
      if (lanes != numbers) {
        Kind::narrow(a, lanes + n * LANES / 2, at);
        if (two) Kind::narrow(b, lanes + (n + 1) * LANES / 2, at);
      }
      if (keys != numbers) store(keys + n / 2 * LANES + at, Kind::pair(a, b));
    }
  }
};

}  // namespace
