// forward: out and lse, in one pass over the keys with a running maximum.
//
//     s = scale · k qᵀ + bias        keys by lane
//     m ← max(m, s),  l ← l · 2^(m_old − m) + Σ 2^(s − m),  o ← o · 2^(m_old − m) + vᵀ (D ∘ 2^(s − m))
//     out = o / l,  lse = m + log l
#pragma once

namespace {

constexpr double LOG2E = 1.4426950408889634, TINY = 1e-30;  // a scale below TINY is not folded into 2ˣ

// The tiles of one task, and the keys that they see.
struct Task {
  long b, g, chunk, t0, t1;
  template <class Kind> static long tiles(const Problem& p) { return (p.R * p.M + LANES - 1) / LANES; }
  template <class Kind> static Task of(const Problem& p, int64_t task) {
    const long all = tiles<Kind>(p), turns = p.turns_B * p.turns_G;
    if (turns == 1 && p.chunks == 1) return {task / p.G, task % p.G, 0, 0, all};
    const long turn = task % turns, cut = task / turns, heads = p.G / p.turns_G, chunk = cut % p.chunks,
               head = cut / p.chunks;
    return {head / heads * p.turns_B + turn / p.turns_G, head % heads * p.turns_G + turn % p.turns_G, chunk,
            all * chunk / p.chunks, all * (chunk + 1) / p.chunks};
  }
  // Tile t, of two that take turns: the next one, too.
  template <class Kind> Tile<Kind>& set(Tile<Kind> (&tiles)[2], long t) const {
    Tile<Kind>&tile = tiles[t & 1], &next = tiles[~t & 1];
    tile.set(t);
    if (t + 1 < t1) next.set(t + 1);
    tile.then = (t + 1 < t1 ? next : tile).first;
    return tile;
  }
  // Queries of the next tile, during this one; of a layout during its last block, for they fall into the sets of the
  // caches that its keys do.
  template <class Kind> void next(Ahead& ahead, const Tile<Kind>& tile, long t, long steps) const {
    const bool live = tile.p.layout.live;
    if (live ? !tile.ends() : tile.next != tile.first + BLOCK) return;
    long keys = live ? 0 : tile.last - tile.first;
    for (const Run& r : tile) keys += live ? r.rows : 0;
    ahead = Ahead();
    if (t + 1 < t1) fetch<Kind>(ahead, tile.p, (t + 1) * LANES, LANES);
    ahead.within(keys * steps);
  }
  // Queries of the rows from `row` on, up to the end of a head.
  template <class Kind> void fetch(Ahead& ahead, const Problem& p, long row, long count) const {
    const long size = sizeof(typename Kind::T), above = row < p.M ? 0 : row / p.M;
    const long h = g * p.R + above, m = row - above * p.M, some = std::min<long>(count, p.M - m);
    const auto add = [&](const Sequence& t, long features) { ahead.add<Kind>(t, b, h, m, some, features); };
    const auto result = [&](const void* to, long features) {
      if (!p.far(p.M * p.H * features))
        ahead.add(to, size, ((b * p.M + m) * p.H + h) * features, p.H * features, some, features);
    };
    add(p.x.q, p.K), add(p.dy.out, p.V), add(p.y.out, p.V);
    result(p.out, p.V), result(p.dq, p.K);
  }
  // The next task's tensors, if they are small: the keys of a large head would be gone before they are used.
  template <class Kind> static Ahead ahead(const Problem& p, int64_t next) {
    Ahead ahead;
    const long size = sizeof(typename Kind::T);
    if (next >= p.B * p.G * p.chunks || !small<Kind>(p)) return ahead;
    const Task task = of<Kind>(p, next);
    const auto add = [&](const Sequence& t, long features) { ahead.add<Kind>(t, task.b, task.g, 0, p.N, features); };
    const auto result = [&](const void* to, long features) {
      ahead.add(to, size, (task.b * p.N * p.G + task.g) * features, p.G * features, p.N, features);
    };
    add(p.x.k, p.K), add(p.x.v, p.V);
    task.fetch<Kind>(ahead, p, 0, p.M);
    result(p.dk, p.K), result(p.dv, p.V);
    return ahead;
  }
  // Whether keys are read by so many queries that those far apart are better brought together. A layout's are read where
  // they lie, by fewer: what products fetch of them takes no time.
  static bool often(const Problem& p, long rows = 16) { return !p.layout.live && p.R * p.M > rows; }
  template <class Kind> static bool small(const Problem& p) {
    const long rows = p.R * p.M, row = (p.K + p.V) * sizeof(typename Kind::T);
    return p.N * row <= 65536 && rows * row <= 65536;
  }
  template <class Kind> std::pair<long, long> keys(const Problem& p, Tile<Kind>& tile) const {
    if (!p.lo.data && !p.hi.data) return {0, p.N};
    long first = p.N, last = 0;
    for (long t = t0; t < t1; t++) {
      tile.set(t);
      first = std::min(first, tile.first), last = std::max(last, tile.last);
    }
    return {std::min(first, last), last};
  }
};

// `Tangent`: what is carried along, Moves or nothing.
template <class Kind, class Tangent> size_t forward(const Problem& p, int64_t index, Arena arena) {
  typedef typename Kind::S S;
  const bool counts = !arena.front;
  const Task task = Task::of<Kind>(p, index);
  const Operands& x = p.x;
  Tile<Kind> tiles[2] = {{p, task.b, task.g}, {p, task.b, task.g}};  // the one at hand, and the next
  S* q = arena.take<S>((p.K + 1) * LANES);
  Sums<Kind> o{arena.take<S>(p.V * LANES), p.V};
  S* kept = p.key ? arena.take<S>(BLOCK * LANES) : nullptr;
  Weights<Kind> w(BLOCK, false, true, arena);
  S shrink[LANES];
  // Products become logits in base 2: at once where nothing is added, else when that is. A mask adds nothing.
  const bool masks = x.dense.data && x.dense.dtype == Dtype::boolean;
  Operands bias = x;
  if (masks) bias.dense = {};
  const bool adds = bias.dense.data || x.slopes.data || x.spoilt.data || p.scale < TINY;
  const S c = adds ? (S)LOG2E : (S)(p.scale * LOG2E);
  const bool fuses = !adds && !p.key;

  const auto [n0, n1] = counts ? std::pair<long, long>(0, p.N) : task.keys(p, tiles[0]);
  const auto keys = [&, n0 = n0, n1 = n1](const Sequence& t, long features, bool by_key, bool often) {
    return Keys<Kind>::of(t, task.b, task.g, n0, n1, features, by_key, often, arena);
  };
  // Keys are read once by each tile of them; values, where they are not woven, more often, and of a layout nothing
  // fetches them but fused products.
  const bool often = Kind::PAIR == 1 && (fuses && !Tangent::some ? Task::often(p) : p.R * p.M > 16);
  auto k = keys(x.k, p.K, false, Tangent::some ? often : Task::often(p, 2 * LANES)), v = keys(x.v, p.V, true, often);
  Tangent tangent(p, arena);
  tangent.set(keys(p.u.k, p.K, false, often), keys(p.u.v, p.V, true, often));
  if (counts) return arena.used;

  if (kept) std::memset(kept, 0, BLOCK * LANES * sizeof(S));
  Softmax<Kind> softmax(w, masks ? &x.dense : nullptr, kept, c, fuses);
  const bool small = Task::small<Kind>(p), bound = p.lo.data || p.hi.data;
  const long steps = (p.K + p.V) * LANES / (L<S> * Kind::PAIR);  // of a tile and a key, in the products below
  Ahead ahead = Task::ahead<Kind>(p, index + 1);
  ahead.within((task.t1 - task.t0) * p.N * steps / (bound ? 2 : 1));
  const auto beside = [&](long steps) INLINE_LAMBDA { ahead(steps); };
  for (long t = task.t0; t < task.t1; t++) {
    Tile<Kind>& tile = task.set(tiles, t);
    k.reach(tile.last), v.reach(tile.last);
    tile.pack_lanes(x.q, p.K, q);
    softmax.begin(tile), o.begin();
    tangent.begin(tile);
    const auto smaller = [&](int row, int u, Vec<S> by) {
      w.shrink(row, u * L<S>, by), o.shrink(u, by), tangent.shrink(u, by);
    };

    for (tile.start(); tile.advance();) {
      if (!small) task.next<Kind>(ahead, tile, t, steps);
      for (const Run& run : tile) {
        const long n = run.n, then = tile.after(run);
        const int tall = softmax.fuses ? STEP : run.rows;  // a bias is read along its rows
        for (int at = run.at, done; at < run.at + run.rows; at += done) {
          done = softmax.fuse(run.part(at, BLOCK), k, v, q, then, beside);
          if (done) continue;
          const Run r = run.part(at, tall);
          done = r.rows;
          const auto multiply = [&](const auto& next) INLINE_LAMBDA {
            gemm<typename Kind::Words>(k.at(n + at), k.row, 1, q + r.v0 * L<S>, LANES, k.words(),
                                       w.row(at) + r.v0 * L<S>, LANES, r.rows, (r.v1 - r.v0) * L<S>, false, beside,
                                       next);
          };
          then < 0 ? multiply(Never()) : multiply(k.soon(n + at + STEP, n + run.at + run.rows, then));
          if (adds) tile.add(bias, (S)p.scale, w.numbers, r, n);
          if (kept) tile.keep(kept, r, n);
          softmax.soften(r, n, smaller);
        }
      }

      tangent.block(tile, k, v, q, w, o);
      o.mix(tile, v, w, beside);
    }
    o.end();

    S lse[LANES];
    for (int u = 0; u < tile.vectors; u++) {
      const Vec<S> l = load(softmax.sum + u * L<S>), some = l == 0 ? splat<S>(1) : l;
      store(shrink + u * L<S>, l == 0 ? Vec<S>{} : (S)(1 / p.keep) / some);
      store(lse + u * L<S>,
            l == 0 ? splat(-infinity<S>) : load(softmax.top + u * L<S>) * (adds ? (S)1 : (S)p.scale) + logv(some));
    }
    tile.write(o.at, p.V, shrink, p.out);
    tile.write(lse, p.lse);
    tangent.end(tile, shrink);
  }
  return arena.used;
}

}  // namespace
