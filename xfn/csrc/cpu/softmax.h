// Products of queries and keys to weights 2^(s − top), and to their sum, STEP keys at a time.
//
// The top of a lane is a maximum of the first keys that it saw. Later ones may pass it by 2^LAZY; where one goes further,
// the lane gets a new top and what is summed shrinks. That is rare: once every lane has a top, products become weights
// in the registers that they are summed in.
#pragma once

namespace {

template <class Kind> struct Softmax {
  typedef typename Kind::S S;
  typedef Int<S> I;
  static constexpr int LAZY = 30;
  const Tile<Kind>* tile = nullptr;
  const Weights<Kind>& w;
  const Square* const mask;  // of booleans, or null
  const S* const kept;       // what dropout keeps, or null
  const S c;                 // to logits in base 2
  const bool fuses;          // products are logits, but for c
  bool all;                  // lanes have a top
  S top[LANES], limit[LANES], sum[LANES];

  Softmax(const Weights<Kind>& w, const Square* mask, const S* kept, S c, bool fuses)
      : w(w), mask(mask), kept(kept), c(c), fuses(fuses) {}

  void begin(const Tile<Kind>& next) {
    tile = &next, all = false;
    for (int i = 0; i < LANES; i++) top[i] = sum[i] = 0, limit[i] = -infinity<S>;
  }

  // Weights from logits in w.numbers; `shrink(row, u, by)`: weights before the row, and their products, in vector u.
  template <class Shrink> void soften(const Run& run, long n, const Shrink& shrink) {
    for (int at = run.at; at < run.at + run.rows; at += STEP) {
      const Run r = run.part(at, STEP);
      for (int u = r.v0; u < r.v1; u++) {
        if (kept || w.read)
          soften<true, false>(r, u, n, shrink);
        else if (hides(r, u, n))
          soften<true, true>(r, u, n, shrink);
        else
          soften<false, true>(r, u, n, shrink);
      }
    }
  }

  // The same from keys and queries, once all lanes have a top: for how many keys of the run, after which key `then` is
  // read, if any. `beside`: as in gemm.
  template <class Beside> INLINE int fuse(const Run& run, const Keys<Kind>& k, const Keys<Kind>& v, const S* queries,
                                          long then, const Beside& beside) {
    const int rows = run.rows / STEP * STEP;
    const long n = run.n, words = k.words();
    if (!all || !fuses || !rows) return 0;
    Soon soon = k.soon(n + run.at + STEP, n + run.at + rows, then);
    for (int u = run.v0; u < run.v1; u++) base[u] = load(top + u * L<S>) * c, part[u] = Vec<S>{};
    for (int at = run.at; at < run.at + rows; at += STEP, soon.pass(STEP)) {
      const Run r = run.part(at, STEP);
      const Soon both[] = {soon, then < 0 || !v ? soon : v.values(n + at)}, *next = then < 0 ? nullptr : both;
      for (int u = r.v0, wide; u < r.v1; u += wide) {
        wide = std::min(r.v1 - u, WIDE);
        bool hidden = false;
        if (mask || r.masked)
          for (int i = u; i < u + wide; i++) hidden |= hides(r, i, n), seen[i] = tile->seen(mask, r, i, n);
        fuse(hidden, wide, k.at(n + at), k.row, queries, words, w.keys + at / Kind::PAIR * LANES, u, next);
        next = nullptr;
        beside(STEP * wide * words);
      }
    }
    bool far = false;
    for (int u = run.v0; u < run.v1; u++) far |= any(part[u] > (S)(1 << LAZY));
    if (far) return 0;
    for (int u = run.v0; u < run.v1; u++) store(sum + u * L<S>, load(sum + u * L<S>) + part[u]);
    return rows;
  }

 private:
  static constexpr int VECTORS = LANES / L<S>, WIDE = REGISTERS == 32 ? 4 : 2;
  Vec<S> base[VECTORS], part[VECTORS];
  Vec<I> seen[VECTORS];

  bool hides(const Run& r, int u, long n) const {
    return mask || r.cut || r.rows < STEP || (r.masked && !tile->covers(u, n + r.at, n + r.at + r.rows));
  }

  template <bool hides, bool plain, class Shrink> void soften(const Run& r, int u, long n, const Shrink& shrink) {
    const long at = u * L<S>;
    const S* const from = w.row(r.at) + at;
    Vec<S> s[STEP], most[2] = {splat(-infinity<S>), splat(-infinity<S>)};
    Vec<I> seen{};
    if (hides) seen = tile->seen(mask, r, u, n);
#pragma GCC unroll 16
    for (int j = 0; j < STEP; j++) {
      s[j] = load(from + j * LANES);
      if (hides) s[j] = (seen & (I)(1 << j)) != 0 ? s[j] : splat(-infinity<S>);
      most[j % 2] = larger(s[j], most[j % 2]);
    }
    most[0] = larger(most[0], most[1]);
    if (any(most[0] > load(limit + at))) grow(r.at, u, most[0], shrink);
    const Vec<S> peak = load(top + at);
    Vec<S> total[2] = {};
    const auto weight = [&](int j) INLINE_LAMBDA {
      const Vec<S> e = exp2v<Kind::degree, true>((s[j] - peak) * c);
      total[j % 2] += e;
      return !plain && kept ? e * load(kept + (r.at + j) * LANES + at) : e;
    };
    S* const to = w.keys + r.at / Kind::PAIR * LANES + at;
#pragma GCC unroll 16
    for (int j = 0; j < STEP; j += 2) {
      const Vec<S> a = weight(j), b = weight(j + 1);
      if constexpr (plain)
        Kind::two(a, b, to + j / Kind::PAIR * LANES, LANES);
      else
        w.put(r.at + j, at, a, b, true);
    }
    store(sum + at, load(sum + at) + (total[0] + total[1]));
  }

  template <class Shrink> __attribute__((noinline)) void grow(int row, int u, Vec<S> most, const Shrink& shrink) {
    const long at = u * L<S>;
    const Vec<S> was = load(limit + at), old = load(top + at);
    const auto grows = most > was, some = was > -infinity<S>;
    store(top + at, grows ? most : old), store(limit + at, grows ? most + LAZY / c : was);
    all = true;
    for (int v = 0; v < tile->vectors; v++) all &= !any(load(limit + v * L<S>) == -infinity<S>);
    if (!any(grows & some)) return;
    const Vec<S> less = some ? (grows ? exp2v<Kind::degree, true>((old - most) * c) : splat<S>(1)) : Vec<S>{};
    store(sum + at, load(sum + at) * less);
    shrink(row, u, less);
  }

  // Vectors of lanes from u on, in tiles that registers hold. `next`: what is fetched beside, or null.
  void fuse(bool hidden, int wide, const S* keys, long row, const S* queries, long words, S* to, int u,
            const Soon* next) {
    const auto with = [&]<int W>(std::integral_constant<int, W>) {
      if (wide != W) return;
      if (hidden)
        fuse<true, W>(keys, row, queries, words, to, u, next);
      else
        fuse<false, W>(keys, row, queries, words, to, u, next);
    };
    [&]<int... W>(std::integer_sequence<int, W...>) {
      (with(std::integral_constant<int, W + 1>()), ...);
    }(std::make_integer_sequence<int, WIDE>{});
  }
  template <bool hides, int W>
  void fuse(const S* keys, long row, const S* queries, long words, S* to, int u, const Soon* next) {
    const auto one = [&]<int R>(std::integral_constant<int, R>, int& j) INLINE_LAMBDA {
      const auto with = [&](auto beside) INLINE_LAMBDA {
        fuse<hides, W, R>(keys + j * row, row, queries, words, to + j / Kind::PAIR * LANES, u, j, beside);
      };
      if constexpr (!hides && W == WIDE)
        next ? with(next[j > 0]) : with(Never());
      else
        with(Never());
      j += R;
    };
    const auto tiles = [&]<int... R>() {
      int j = 0;
      (one(std::integral_constant<int, R>(), j), ...);
    };
    if constexpr (W == WIDE && Kind::PAIR == 2)
      tiles.template operator()<6, 6, 4>();
    else if constexpr (W == WIDE)
      tiles.template operator()<6, 5, 5>();
    else if constexpr (W == 1 && REGISTERS == 32)
      tiles.template operator()<16>();
    else
      tiles.template operator()<8, 8>();
  }
  template <bool hides, int W, int R, class Next> __attribute__((noinline)) void fuse(const S* keys, long row,
                                                                                      const S* queries, long words,
                                                                                      S* to, int u, int j, Next next) {
    Vec<S> s[R][W] = {};
    multiply<Kind>(s, keys, row, 1, queries + u * L<S>, LANES, words, next);
#pragma GCC unroll 4
    for (int v = 0; v < W; v++) {
      const Vec<S> less = base[u + v];
      Vec<I> bits{};
      if (hides) bits = seen[u + v] >> j;
      Vec<S> total = part[u + v];
      const auto weight = [&](int i) INLINE_LAMBDA {
        Vec<S> e = exp2v<Kind::degree, false>(s[i][v] * c - less);
        if (hides) e = (bits & (I)(1 << i)) != 0 ? e : Vec<S>{};
        total += e;
        return e;
      };
      S* const at = to + (u + v) * L<S>;
#pragma GCC unroll 16
      for (int i = 0; i + 1 < R; i += 2) {
        const Vec<S> a = weight(i), b = weight(i + 1);
        Kind::two(a, b, at + i / Kind::PAIR * LANES, LANES);
      }
      if constexpr (R % 2) store(at + (R - 1) * LANES, weight(R - 1));
      part[u + v] = total;
    }
  }
};

}  // namespace
