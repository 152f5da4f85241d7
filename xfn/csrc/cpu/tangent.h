// jvp, and its derivative jvp2: one pass each, for lse and its tangents are known.
//
//     jvp     t = ṡ                                             ȯut = vᵀ (D ∘ P ∘ t) + v̇ᵀ (D ∘ P) − ⟨t⟩ out,  l̇se = ⟨t⟩ = Σ P ∘ t
//     jvp2    t = cᵤ ∘ c_w + scale (k̇_w q̇ᵤᵀ + k̇ᵤ q̇_wᵀ)      and v̇_wᵀ (D ∘ P ∘ cᵤ) + v̇ᵤᵀ (D ∘ P ∘ c_w) in place of v̇ᵀ (D ∘ P)
//
// with c = ṡ − l̇se, all of it as [key][lane].
//
// What all logits of a query have in common moves no weight, yet ṡ is rounded with it, and so was out: where half types
// would lose what is left, jvp is done again with t = ṡ − ⟨ṡ⟩.
#pragma once

namespace {

// Whether the mean of tangents is so much larger than their spread, over all lanes, that to take it off costs two bits;
// from the means of t and of t².
template <class Kind, class S = typename Kind::S> bool strays(const Tile<Kind>& tile, const S* mean, const S* squares) {
  S common = 0, all = 0;
  for (int i = 0; i < tile.count; i++) common += mean[i] * mean[i], all += squares[i];
  return common > 16 * (all - common);
}

template <class Kind, bool second> size_t tangent(const Problem& p, int64_t index, Arena arena) {
  typedef typename Kind::S S;
  constexpr bool rounds = !second && sizeof(typename Kind::T) == 2;
  const bool counts = !arena.front;
  const Task task = Task::of<Kind>(p, index);
  const bool often = Task::often(p);
  Tile<Kind> tiles[2] = {{p, task.b, task.g}, {p, task.b, task.g}};
  const Operands none{}, &w = second ? p.w : none;
  const auto lanes = [&](const Sequence& t) { return t.data ? arena.take<S>((p.K + 1) * LANES) : nullptr; };
  S *q = lanes(p.x.q), *uq = lanes(p.u.q), *wq = lanes(w.q);
  const Weights<Kind> P(BLOCK, false, true, arena), U(BLOCK, false, true, arena),
      W(second ? BLOCK : 0, false, true, arena), T(second ? BLOCK : 0, false, true, arena);
  S* kept = p.key ? arena.take<S>(BLOCK * LANES) : nullptr;
  Sums<Kind> o{arena.take<S>(p.V * LANES), p.V};
  const auto [n0, n1] = counts ? std::pair<long, long>(0, p.N) : task.keys(p, tiles[0]);
  const auto keys = [&, n0 = n0, n1 = n1](const Sequence& t, long features, bool by_key) {
    return Keys<Kind>::of(t, task.b, task.g, n0, n1, features, by_key, often, arena);
  };
  auto k = keys(p.x.k, p.K, false), uk = keys(p.u.k, p.K, false), wk = keys(w.k, p.K, false);
  auto v = keys(p.x.v, p.V, true), uv = keys(p.u.v, p.V, true), wv = keys(w.v, p.V, true);
  if (counts) return arena.used;

  const bool biased = p.x.dense.data || p.x.slopes.data || p.x.spoilt.data || p.scale < TINY;
  const S c = biased ? (S)LOG2E : (S)(p.scale * LOG2E), scale = (S)p.scale, grow = (S)(1 / p.keep);
  // What a tangent's products are still to be multiplied by.
  const S us = p.u.dense.data || p.u.slopes.data ? 1 : scale, ws = w.dense.data || w.slopes.data ? 1 : scale;

  for (long t = task.t0; t < task.t1; t++) {
    Tile<Kind>& tile = task.set(tiles, t);
    for (Keys<Kind>* each : {&k, &uk, &wk, &v, &uv, &wv}) each->reach(tile.last);
    tile.pack_lanes(p.x.q, p.K, q);
    if (uq) tile.pack_lanes(p.u.q, p.K, uq);
    if (wq) tile.pack_lanes(w.q, p.K, wq);
    S lse2[LANES], mean[LANES], squares[LANES], mu[LANES] = {}, mw[LANES] = {};  // mu: of jvp, what t is less
    for (int u = 0; u < tile.vectors; u++) {
      const long at = u * L<S>;
      const Vec<S> lse = tile.numbers(p.y.lse, u);
      store(lse2 + at, lse == -infinity<S> ? splat(NEVER<S>) : lse * (S)LOG2E);
      if (second) store(mu + at, tile.numbers(p.uy.lse, u)), store(mw + at, tile.numbers(p.wy.lse, u));
    }
    Ahead ahead;
    const auto beside = [&](long steps) INLINE_LAMBDA { ahead(steps); };

    for (bool again = false;; again = true) {
      std::fill_n(mean, LANES, (S)0), std::fill_n(squares, LANES, (S)0);
      o.begin();
      for (tile.start(); tile.advance();) {
        task.next<Kind>(ahead, tile, t, p.V * Tile<Kind>::VECTORS / Kind::PAIR);
        for (const Run& r : tile) {
          const long n = r.n;
          const long then = tile.after(r);
          product(r, then, k, q, P.numbers, false);
          if (biased) tile.add(p.x, scale, P.numbers, r, n);
          if (r.masked) tile.mask(P.numbers, r, n);
          if (kept) tile.keep(kept, r, n);
          slide(tile, r, p.u, k, uk, q, uq, scale, U.numbers);
          bool bent = false;
          if (second)
            slide(tile, r, w, k, wk, q, wq, scale, W.numbers),
                bent = product(r, then, uk, wq, T.numbers, product(r, then, wk, uq, T.numbers, false));

          const auto weigh = [&]<bool guarded, bool drops>(std::bool_constant<guarded>, std::bool_constant<drops>) {
            for (int u = r.v0; u < r.v1; u++) {
              const long at = u * L<S>;
              const Vec<S> l2 = load(lse2 + at), m1 = load(mu + at), m2 = load(mw + at);
              Vec<S> sum = load(mean + at), square = load(squares + at);
              struct Row {
                Vec<S> P{}, U{}, W{};
              };
              const auto compute = [&](int j) INLINE_LAMBDA {
                const long a = j * LANES + at;
                const Vec<S> e = exp2v<Kind::degree, guarded>(load(P.numbers + a) * c - l2),
                             d = drops ? e * load(kept + a) * grow : e;
                const Vec<S> one = load(U.numbers + a) * us - m1;
                if (!second) {
                  sum += e * one;
                  if (rounds) square += e * one * one;
                  return Row{d, d * one};
                }
                const Vec<S> two = load(W.numbers + a) * ws - m2;
                const Vec<S> bend = one * two + (bent ? load(T.numbers + a) * scale : Vec<S>{});
                sum += e * bend;
                return Row{d * bend, d * one, d * two};
              };
              const auto put = [&](int j, const Row& a, const Row& b, bool two) INLINE_LAMBDA {
                P.put(j, at, a.P, b.P, two), U.put(j, at, a.U, b.U, two);
                if (second) W.put(j, at, a.W, b.W, two);
              };
              two_by_two<Row>(r, compute, put);
              store(mean + at, sum);
              if (rounds) store(squares + at, square);
            }
          };
          if (kept)
            weigh(std::true_type{}, std::true_type{});
          else if (biased || r.masked)
            weigh(std::true_type{}, std::false_type{});
          else
            weigh(std::false_type{}, std::false_type{});
        }
        if (second)
          o.mix(tile, v, P, beside), o.mix(tile, wv, U, beside), o.mix(tile, uv, W, beside);
        else
          o.mix(tile, v, U, beside), o.mix(tile, uv, P, beside);
      }
      o.end();
      if (!rounds || again || !strays(tile, mean, squares)) break;
      std::copy_n(mean, LANES, mu);
    }

    // − ⟨t⟩ out
    for (int u = 0; u < tile.vectors; u++)
      for (long f = 0; f < p.V; f += L<S>) {
        Vec<S> r[L<S>];
        for (int i = 0; i < L<S>; i++) {
          const auto* from = tile.row(p.y.out, u * L<S> + i);
          r[i] = from ? widen(from + f, (int)(p.V - f)) : Vec<S>{};
        }
        transpose<S>(r);
        for (int i = 0; i < L<S> && f + i < p.V; i++) {
          S* at = o.at + (f + i) * LANES + u * L<S>;
          store(at, load(at) - load(mean + u * L<S>) * r[i]);
        }
      }
    S factor[LANES];
    for (S& f : factor) f = 1;
    tile.write(o.at, p.V, factor, p.out);
    for (int i = 0; rounds && i < LANES; i++) mean[i] += mu[i];
    tile.write(mean, p.lse);
  }
  return arena.used;
}

}  // namespace
