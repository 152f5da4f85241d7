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
  long b, g, t0, t1;
  template <class Kind> static long tiles(const Problem& p) { return (p.H / p.G * p.M + LANES - 1) / LANES; }
  template <class Kind> static Task of(const Problem& p, int64_t task) {
    const long all = tiles<Kind>(p), chunk = task % p.chunks, head = task / p.chunks;
    return {head / p.G, head % p.G, all * chunk / p.chunks, all * (chunk + 1) / p.chunks};
  }
  // Queries of the rows from `row` on, up to the end of a head.
  template <class Kind> void fetch(Ahead& ahead, const Problem& p, long row, long count) const {
    const long size = sizeof(typename Kind::T), h = g * (p.H / p.G) + row / p.M, m = row % p.M,
               some = std::min<long>(count, p.M - m);
    const auto add = [&](const Sequence& t, long features) { ahead.add<Kind>(t, b, h, m, some, features); };
    const auto result = [&](const void* to, long features) {
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
  template <class Kind> static bool small(const Problem& p) {
    const long rows = p.H / p.G * p.M, row = (p.K + p.V) * sizeof(typename Kind::T);
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

template <class Kind> size_t forward(const Problem& p, int64_t index, Arena arena) {
  typedef typename Kind::S S;
  const bool counts = !arena.front;
  const Task task = Task::of<Kind>(p, index);
  const Operands& x = p.x;
  const bool often = p.H / p.G * p.M > 16;
  Tile<Kind> tile(p, task.b, task.g);
  S* q = arena.take<S>((p.K + 1) * LANES);
  S* o = arena.take<S>(p.V * LANES);
  S* kept = p.key ? arena.take<S>(BLOCK * LANES) : nullptr;
  const bool few = Slim<Kind>::fits(p);
  Slim<Kind> slim(p, task.b, task.g, arena);
  Weights<Kind> w(BLOCK, false, true, arena);
  w.read = few;
  S top[LANES], sum[LANES], shrink[LANES];
  const auto [n0, n1] = counts ? std::pair<long, long>(0, p.N) : task.keys(p, tile);
  const auto k = Keys<Kind>::of(few ? Sequence{} : x.k, task.b, task.g, n0, n1, p.K, false, often, arena);
  const auto v = Keys<Kind>::of(few ? Sequence{} : x.v, task.b, task.g, n0, n1, p.V, true, often, arena);
  if (counts) return arena.used;

  // Products become logits in base 2: at once where nothing is added, else when that is.
  const bool biased = x.dense.data || x.slopes.data || x.spoilt.data || p.scale < TINY;
  const S c = biased ? (S)LOG2E : (S)(p.scale * LOG2E);

  Ahead ahead = Task::ahead<Kind>(p, index + 1);
  for (long t = task.t0; t < task.t1; t++) {
    tile.set(t);
    if (few)
      slim.begin(tile);
    else
      tile.pack_lanes(x.q, p.K, q);
    bool fresh = true;  // nothing in o yet
    for (int i = 0; i < LANES; i++) top[i] = -infinity<S>, sum[i] = 0;

    for (long n = tile.first; n < tile.last; n += BLOCK) {
      tile.find(n, std::min(n + BLOCK, tile.last));
      for (const Run& r : tile) {
        if (few)
          slim.scores(tile, r, n, w.numbers);
        else
          gemm<Kind>(k.at(n + r.at), k.row, 1, q + r.v0 * L<S>, LANES, k.words(), w.row(r.at) + r.v0 * L<S>, LANES,
                     r.rows, (r.v1 - r.v0) * L<S>, false);
        if (biased) tile.add(x, (S)p.scale, w.numbers, r, n);
        if (r.masked) tile.mask(w.numbers, r, n);
        if (kept) tile.keep(kept, r, n);
        ahead.go(r.rows);
      }

      bool moved = false, guard = biased;
      for (const Run& r : tile) guard |= r.masked;
      for (int u = 0; u < tile.vectors; u++) {
        ahead.go(32);
        S* const at = w.numbers + u * L<S>;
        const Vec<S> old = load(top + u * L<S>);
        Vec<S> most = old;
        for (const Run& r : tile)
          if (r.v0 <= u && u < r.v1)
            for (int j = r.at; j < r.at + r.rows; j++) most = larger(load(at + j * LANES), most);
        const Vec<S> peak = most == -infinity<S> ? Vec<S>{} : most, base = peak * c,
                     less = exp2v<Kind::degree, true>((old - peak) * c);
        Vec<S> one = load(sum + u * L<S>) * less, two{};
        const auto soften = [&]<bool guarded, bool drops>(std::bool_constant<guarded>, std::bool_constant<drops>) {
          for (const Run& r : tile) {
            if (u < r.v0 || r.v1 <= u) continue;
            const auto weight = [&](int j, Vec<S>& l) {
              const Vec<S> s = load(at + j * LANES),
                           e = exp2v<Kind::degree, guarded>(guarded ? (s - peak) * c : s * c - base);
              l += e;
              return drops ? e * load(kept + j * LANES + u * L<S>) : e;
            };
            int j = r.at;
            for (; j + 1 < r.at + r.rows; j += 2) {
              const Vec<S> a = weight(j, one), b = weight(j + 1, two);
              w.put(j, u * L<S>, a, b, true);
            }
            if (j < r.at + r.rows) w.put(j, u * L<S>, weight(j, one), Vec<S>{}, false);
          }
        };
        if (kept)
          soften(std::true_type{}, std::true_type{});
        else if (guard)
          soften(std::true_type{}, std::false_type{});
        else
          soften(std::false_type{}, std::false_type{});
        store(top + u * L<S>, most), store(sum + u * L<S>, one + two), store(shrink + u * L<S>, less);
        const auto differs = less != 1;
        for (int i = 0; i < L<S>; i++) moved |= differs[i] != 0;
      }
      const bool whole = few || (tile.found == 1 && tile.runs[0].v0 == 0 && tile.runs[0].v1 == tile.vectors);
      if (fresh && !whole) std::memset(o, 0, p.V * LANES * sizeof(S));
      if (moved && few) slim.shrink(tile, shrink);
      if (moved && !fresh && !few)
        for (long f = 0; f < p.V; f++)
          for (int u = 0; u < tile.vectors; u++)
            store(o + f * LANES + u * L<S>, load(o + f * LANES + u * L<S>) * load(shrink + u * L<S>));

      for (const Run& r : tile)
        if (few)
          slim.mix(tile, r, n, w.numbers);
        else
          gemm<Kind>(v.pairs_at(n + r.at), 1, v.column, w.keys + r.at / Kind::PAIR * LANES + r.v0 * L<S>, LANES,
                     (r.rows + Kind::PAIR - 1) / Kind::PAIR, o + r.v0 * L<S>, LANES, p.V, (r.v1 - r.v0) * L<S>,
                     !fresh || !whole);
      fresh = false;
    }
    if (fresh) std::memset(o, 0, p.V * LANES * sizeof(S));

    S lse[LANES];
    for (int u = 0; u < tile.vectors; u++) {
      const Vec<S> l = load(sum + u * L<S>), some = l == 0 ? splat<S>(1) : l;
      store(shrink + u * L<S>, l == 0 ? Vec<S>{} : (S)(1 / p.keep) / some);
      store(lse + u * L<S>,
            l == 0 ? splat(-infinity<S>) : load(top + u * L<S>) * (biased ? (S)1 : (S)p.scale) + logv(some));
    }
    if (few)
      slim.write(tile, shrink, task.b);
    else
      tile.write(o, p.V, shrink, p.out);
    tile.write(lse, p.lse);
  }
  return arena.used;
}

}  // namespace
