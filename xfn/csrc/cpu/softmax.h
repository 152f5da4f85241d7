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
  static constexpr int LAZY = 20;
  const Tile<Kind>* tile = nullptr;
  const Weights<Kind>& w;
  const Square* const mask;  // of booleans, or null
  const S* const kept;       // what dropout keeps, or null
  const S c;                 // to logits in base 2
  const bool fuses;          // products are logits, but for c
  bool all;                  // lanes have a top
  S top[LANES], limit[LANES], sum[LANES];
  Fusion<typename Kind::Words, Kind::degree> fusion;

  Softmax(const Weights<Kind>& w, const Square* mask, const S* kept, S c, bool fuses)
      : w(w), mask(mask), kept(kept), c(c), fuses(fuses), fusion{c} {}

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
    for (int u = run.v0; u < run.v1; u++) fusion.begin(u, load(top + u * L<S>));
    for (int at = run.at; at < run.at + rows; at += STEP, soon.pass(STEP)) {
      const Run r = run.part(at, STEP);
      const Soon both[] = {soon, then < 0 || !v ? soon : v.values(n + at)}, *next = then < 0 ? nullptr : both;
      for (int u = r.v0, wide; u < r.v1; u += wide) {
        wide = std::min(r.v1 - u, fusion.WIDE);
        bool hidden = false;
        if (mask || r.masked)
          for (int i = u; i < u + wide; i++) hidden |= hides(r, i, n), fusion.seen[i] = tile->seen(mask, r, i, n);
        fusion.run(hidden, wide, k.at(n + at), k.row, queries, words, w.keys + at / Kind::PAIR * LANES, u, next);
        next = nullptr;
        beside(STEP * wide * words);
      }
    }
    bool far = false;
    for (int u = run.v0; u < run.v1; u++) far |= any(fusion.part[u] > (S)(1 << LAZY));
    if (far) return 0;
    for (int u = run.v0; u < run.v1; u++) store(sum + u * L<S>, load(sum + u * L<S>) + fusion.part[u]);
    return rows;
  }

 private:
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
};

}  // namespace
