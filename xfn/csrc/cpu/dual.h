// What forward carries along where operands move, so that value and tangent are one pass:
//
//     W = 2^(s − m)      ṫ ← Σ vᵀ (W ∘ (ṡ − μ)) + v̇ᵀ W        with o and l, and shrinking as they do
//     ȯut = ṫ / l,  l̇se = μ = Σ W ∘ ṡ / Σ W
//
// What all logits of a query have in common moves none of its weights, and may be large: μ is the mean of the keys so
// far, and where it moves, what was summed follows, ṫ ← ṫ − (μ − μ_old) o.
#pragma once

namespace {

// A product of keys and queries of a run, after which key `then` is read, if any, where there are both; whether `to` has
// something then.
template <class Kind, class S = typename Kind::S>
bool product(const Run& r, long then, const Keys<Kind>& k, const S* q, S* to, bool add) {
  if (!k || !q) return add;
  const long l0 = r.v0 * L<S>, n = r.n + r.at;
  const auto with = [&](const auto& next) INLINE_LAMBDA {
    gemm<typename Kind::Words>(k.at(n), k.row, 1, q + l0, LANES, k.words(), to + r.at * LANES + l0, LANES, r.rows,
                               (r.v1 - r.v0) * L<S>, add, Alone(), next);
  };
  then >= 0 ? with(k.soon(n + STEP, n + r.rows, then)) : with(Never());
  return true;
}

// ṡ of a run along the tangent x: k q̇ᵀ + k̇ qᵀ, times scale where a bias moves too.
template <class Kind, class S = typename Kind::S> void slide(const Tile<Kind>& tile, const Run& r, const Operands& x,
                                                             const Keys<Kind>& k, const Keys<Kind>& tk, const S* q,
                                                             const S* tq, S scale, S* to) {
  const long then = tile.after(r);
  if (!product(r, then, tk, q, to, product(r, then, k, tq, to, false)))
    for (int j = r.at; j < r.at + r.rows; j++) std::memset(to + j * LANES, 0, LANES * sizeof(S));
  if (x.dense.data || x.slopes.data) tile.add(x, scale, to, r, r.n);
}

// Nothing moves.
template <class Kind> struct Rests {
  typedef typename Kind::S S;
  static constexpr bool some = false;
  Rests(const Problem&, Arena&) {}
  void set(const Keys<Kind>&, const Keys<Kind>&) {}
  void begin(const Tile<Kind>&) {}
  void shrink(int, Vec<S>) {}
  void block(const Tile<Kind>&, const Keys<Kind>&, const Keys<Kind>&, const S*, const Weights<Kind>&,
             const Sums<Kind>&) {}
  void end(const Tile<Kind>&, const S*) {}
};

template <class Kind> struct Moves {
  typedef typename Kind::S S;
  static constexpr bool some = true;
  const Problem& p;
  S* const q;
  const Weights<Kind> U;
  Sums<Kind> sums;
  Keys<Kind> k, v;
  const S times;                 // what ṡ is still to be multiplied by
  S mean[LANES], weight[LANES];  // μ, and Σ W

  Moves(const Problem& p, Arena& arena)
      : p(p),
        q(p.u.q.data ? arena.take<S>((p.K + 1) * LANES) : nullptr),
        U(BLOCK, false, true, arena),
        sums{arena.take<S>(p.V * LANES), p.V},
        times(p.u.dense.data || p.u.slopes.data ? (S)1 : (S)p.scale) {}

  void set(const Keys<Kind>& moved_k, const Keys<Kind>& moved_v) { k = moved_k, v = moved_v; }
  void begin(const Tile<Kind>& tile) {
    k.reach(tile.last), v.reach(tile.last);
    if (q) tile.pack_lanes(p.u.q, p.K, q);
    sums.begin();
    std::fill_n(mean, LANES, (S)0), std::fill_n(weight, LANES, (S)0);
  }
  void shrink(int u, Vec<S> by) {
    store(weight + u * L<S>, load(weight + u * L<S>) * by);
    sums.shrink(u, by);
  }

  // A block whose weights are there; `o`: what forward summed before it.
  void block(const Tile<Kind>& tile, const Keys<Kind>& keys, const Keys<Kind>& values, const S* queries,
             const Weights<Kind>& w, const Sums<Kind>& o) {
    S gap[LANES] = {};
    for (const Run& r : tile) {
      slide<Kind>(tile, r, p.u, keys, k, queries, q, (S)p.scale, U.numbers);
      for (int u = r.v0; u < r.v1; u++) measure(r, u, w, gap);
    }
    for (int u = 0; u < tile.vectors; u++) settle(u, o, gap);
    for (const Run& r : tile)
      for (int u = r.v0; u < r.v1; u++) {
        const long at = u * L<S>;
        const Vec<S> less = load(mean + at);
        const auto compute = [&](int j) INLINE_LAMBDA { return w.number(j, at) * (turn(j, at) - less); };
        const auto put = [&](int j, Vec<S> a, Vec<S> b, bool two) INLINE_LAMBDA { U.put(j, at, a, b, two); };
        two_by_two<Vec<S>>(r, compute, put);
      }
    sums.mix(tile, values, U), sums.mix(tile, v, w);
  }

  // Times the `factor` 1 / l of each lane.
  void end(const Tile<Kind>& tile, const S* factor) {
    sums.end();
    tile.write(sums.at, p.V, factor, p.tout);
    tile.write(mean, p.tlse);
  }

 private:
  INLINE Vec<S> turn(int j, long at) const { return load(U.numbers + j * LANES + at) * times; }

  // gap ← gap + Σ W ∘ (ṡ − μ) of a run, and the sum of its weights: of even keys and of odd ones, so that none waits.
  void measure(const Run& r, int u, const Weights<Kind>& w, S* gap) {
    const long at = u * L<S>;
    const Vec<S> own = load(mean + at), less = own - own == 0 ? own : Vec<S>{};  // an infinite mean stays one
    Vec<S> sum[2] = {load(gap + at)}, total[2] = {load(weight + at)};
    const auto add = [&](int j, int i) INLINE_LAMBDA {
      const Vec<S> one = w.number(j, at);
      sum[i] += one * (turn(j, at) - less), total[i] += one;
    };
    int j = r.at;
    for (; j + 1 < r.at + r.rows; j += 2) add(j, 0), add(j + 1, 1);
    if (j < r.at + r.rows) add(j, 0);
    store(gap + at, sum[0] + sum[1]), store(weight + at, total[0] + total[1]);
  }

  // μ of all keys up to those of the block, and what was summed before them along with it.
  void settle(int u, const Sums<Kind>& o, const S* gap) {
    const long at = u * L<S>;
    const Vec<S> total = load(weight + at), by = total == 0 ? Vec<S>{} : load(gap + at) / total;
    store(mean + at, load(mean + at) + by);
    if (!sums.has(u) || !any(by != 0)) return;
    for (long f = 0; f < p.V; f++) {
      S* const to = sums.at + f * LANES + at;
      store(to, load(to) - by * load(o.at + f * LANES + at));
    }
  }
};

}  // namespace
