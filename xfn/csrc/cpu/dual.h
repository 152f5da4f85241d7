// What forward carries along where operands move, so that value and tangent are one pass:
//
//     W = 2^(s − m)      ṫ ← Σ vᵀ (W ∘ ṡ) + v̇ᵀ W,  μ ← Σ W ∘ ṡ        with o and l, and shrinking as they do
//     ȯut = (ṫ − μ out) / l,  l̇se = μ / l
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
  void block(const Tile<Kind>&, const Keys<Kind>&, const Keys<Kind>&, const S*, const Weights<Kind>&) {}
  void end(const Tile<Kind>&, const S*, const S*) {}
};

template <class Kind> struct Moves {
  typedef typename Kind::S S;
  static constexpr bool some = true;
  const Problem& p;
  S* const q;
  const Weights<Kind> U;
  Sums<Kind> sums;
  Keys<Kind> k, v;
  const S times;  // what ṡ is still to be multiplied by
  S mean[LANES];

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
    std::fill_n(mean, LANES, (S)0);
  }
  void shrink(int u, Vec<S> by) {
    store(mean + u * L<S>, load(mean + u * L<S>) * by);
    sums.shrink(u, by);
  }

  // A block whose weights are there.
  void block(const Tile<Kind>& tile, const Keys<Kind>& keys, const Keys<Kind>& values, const S* queries,
             const Weights<Kind>& w) {
    for (const Run& r : tile) {
      slide<Kind>(tile, r, p.u, keys, k, queries, q, (S)p.scale, U.numbers);
      for (int u = r.v0; u < r.v1; u++) {
        const long at = u * L<S>;
        Vec<S> sum = load(mean + at);
        const auto compute = [&](int j) INLINE_LAMBDA {
          const Vec<S> moved = w.number(j, at) * load(U.numbers + j * LANES + at) * times;
          sum += moved;
          return moved;
        };
        const auto put = [&](int j, Vec<S> a, Vec<S> b, bool two) INLINE_LAMBDA { U.put(j, at, a, b, two); };
        two_by_two<Vec<S>>(r, compute, put);
        store(mean + at, sum);
      }
    }
    sums.mix(tile, values, U), sums.mix(tile, v, w);
  }

  // From out, times its `factor` 1 / l: tangents in place of what was summed.
  void end(const Tile<Kind>& tile, const S* out, const S* factor) {
    sums.end();
    for (int u = 0; u < tile.vectors; u++) {
      const long at = u * L<S>;
      const Vec<S> by = load(factor + at), shift = load(mean + at) * by;
      store(mean + at, shift);
      for (long f = 0; f < p.V; f++) {
        S* const to = sums.at + f * LANES + at;
        store(to, load(to) - shift * load(out + f * LANES + at));
      }
    }
    tile.write(sums.at, p.V, factor, p.tout);
    tile.write(mean, p.tlse);
  }
};

}  // namespace
