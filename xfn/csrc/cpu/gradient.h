// backward, and its derivative hvp, of one key head at a time:
//
//     dq = scale dSᵀ k                   dk = scale dS q                   dv = (P ∘ D) dout
//     dq˙ = scale (ḋSᵀ k + dSᵀ k̇)      dk˙ = scale (ḋS q + dS q̇)       dv˙ = (P ∘ D ∘ c) dout + (P ∘ D) ḋout
#pragma once

namespace {

// What one chunk of a key head sums over queries, of the keys that it sees.
template <class S> struct Part {
  int64_t *first, *last;
  S *dk, *dv;
  Part(const Problem& p, long head, long chunk) {
    char* from = p.parts + (head * p.chunks + chunk) * p.part();
    first = (int64_t*)from, last = first + 1, dk = (S*)(from + 64), dv = dk + p.N * up(p.K, L<S>);
  }
};

// Keys [n0, n1) of a gradient of theirs, from sum(key, feature).
template <class Kind, class Sum, class S = typename Kind::S>
void hand_out(const Problem& p, long head, long n0, long n1, long features, S times, void* to, const Sum& sum) {
  if (!to) return;
  const bool far = p.far(p.N * p.G * features);
  const long step = p.G * features, b = head / p.G;
  auto* row = (typename Kind::T*)to + (b * p.N + n0) * step + (head - b * p.G) * features;
  Vec<S> broken{};
  for (long n = n0; n < n1; n++, row += step) {
    if (!far) fetch(row + SOON * step, features);
    for (long f = 0; f < features; f += L<S>) {
      const Vec<S> x = sum(n, f) * times;
      broken += x - x;
      put(x, row + f, (int)std::min<long>(features - f, L<S>), far);
    }
  }
  if (total<S>(broken) != 0) *p.broken = true;
}

template <class Kind, bool second> size_t gradient(const Problem& p, int64_t index, Arena arena) {
  typedef typename Kind::S S;
  const bool counts = !arena.front;
  const Task task = Task::of<Kind>(p, index);
  const bool often = Task::often(p);
  Tile<Kind> tiles[2] = {{p, task.b, task.g}, {p, task.b, task.g}};
  Slope<Kind, second> at(p, true, arena);
  Sums<Kind> sums{arena.take<S>(p.K * LANES), p.K};
  const auto [n0, n1] = counts ? std::pair<long, long>(0, p.N) : task.keys(p, tiles[0]);
  const auto keys = [&, n0 = n0, n1 = n1](const Sequence& t, long features, bool by_key) {
    return Keys<Kind>::of(t, task.b, task.g, n0, n1, features, by_key, often, arena);
  };
  auto k = keys(p.x.k, p.K, true), tk = keys(p.u.k, p.K, true);
  auto v = keys(p.x.v, p.V, false), tv = keys(p.u.v, p.V, false);
  const long wk = up(p.K, L<S>), wv = up(p.V, L<S>);
  const int sk = Soon::rows(wk * sizeof(S), LANES / Kind::PAIR), sv = Soon::rows(wv * sizeof(S), LANES / Kind::PAIR);
  const long head = task.b * p.G + task.g;
  const Part<S> part(p, head, task.chunk);
  S* dk = !p.dk ? nullptr : p.parts ? part.dk : arena.take<S>((n1 - n0) * wk);
  S* dv = !p.dv ? nullptr : p.parts ? part.dv : arena.take<S>((n1 - n0) * wv);
  if (counts) return arena.used;
  long reach = n0;  // what is summed over queries begins here for the keys behind, and nothing is there yet
  const auto zero = [&, n0 = n0](long to) {
    if (to <= reach) return;
    if (dk) std::memset(dk + (reach - n0) * wk, 0, (to - reach) * wk * sizeof(S));
    if (dv) std::memset(dv + (reach - n0) * wv, 0, (to - reach) * wv * sizeof(S));
    reach = to;
  };
  if (!at.dout) zero(n1);

  const bool small = Task::small<Kind>(p), bound = p.lo.data || p.hi.data;
  const long steps = (2 * p.K + p.V) * LANES / (L<S> * Kind::PAIR);  // of a tile and a key, in the products below
  Ahead ahead = Task::ahead<Kind>(p, index + 1);
  ahead.within((task.t1 - task.t0) * p.N * steps / (bound ? 2 : 1));
  const bool own = p.alone && p.x.dense.dtype == p.dtype, far = p.B * p.H * p.M * p.N >= 1 << 22;
  const auto lay = [&](const Tile<Kind>& tile, const Run& r, long n) {
    const S* from = at.slant().numbers;
    if (p.turns)
      tile.template lay<true>(from, r, n, (S*)p.dense, false);
    else if (own)
      tile.template lay<false>(from, r, n, (typename Kind::T*)p.dense, far);
    else
      tile.template lay<false>(from, r, n, (S*)p.dense, far);
  };
  const auto beside = [&](long steps) INLINE_LAMBDA { ahead(steps); };
  for (long t = task.t0; t < task.t1; t++) {
    Tile<Kind>& tile = task.set(tiles, t);
    for (Keys<Kind>* each : {&k, &tk, &v, &tv}) each->reach(tile.last);
    at.begin(tile);
    sums.begin();
    for (tile.start(); tile.advance();) {
      if (!small) task.next<Kind>(ahead, tile, t, steps);
      for (const Run& r : tile) {
        const long n = r.n;
        const long lanes = (r.v1 - r.v0) * L<S>, l0 = r.v0 * L<S>, key = n + r.at, then = tile.after(r);
        at.run(tile, r, n, k, v, tk, tv);
        if (p.dense) lay(tile, r, n);

        const bool met = key < reach;
        zero(met ? key + r.rows : key);
        reach = std::max(reach, key + r.rows);
        const auto to_keys = [&](const Weights<Kind>& a, const Side<Kind>& b, S* to, long width, int shift, bool add) {
          if (!to || !b) return;
          const auto at = [&](long key) { return to + (key - n0) * width; };
          const auto multiply = [&](const auto& next) INLINE_LAMBDA {
            gemm<typename Kind::Words>(a.lanes + (r.at * LANES + l0) / Kind::PAIR, LANES / Kind::PAIR, 1,
                                       b.rows + l0 / Kind::PAIR * b.stride, b.stride, lanes / Kind::PAIR, at(key),
                                       width, r.rows, width, add, beside, next);
          };
          then < 0 ? multiply(Never()) : multiply(Soon::upto(at(key + STEP), width, shift, r.rows - STEP, at(then)));
        };
        to_keys(second ? at.C : at.P, at.dout, dv, wv, sv, met);
        to_keys(at.slant(), at.q, dk, wk, sk, met);
        if (second) to_keys(at.P, at.tdout, dv, wv, sv, true), to_keys(at.dS, at.tq, dk, wk, sk, true);
      }
      const auto to_queries = [&](const Weights<Kind>& b, const Keys<Kind>& a) {
        if (!p.dq || !a) return;
        tile.sum([&](const Run& r) {
          const long l0 = r.v0 * L<S>;
          gemm<typename Kind::Words>(a.pairs_at(r.n + r.at), 1, a.column, b.keys + r.at / Kind::PAIR * LANES + l0,
                                     LANES, (r.rows + Kind::PAIR - 1) / Kind::PAIR, sums.at + l0, LANES, p.K,
                                     (r.v1 - r.v0) * L<S>, sums.add(r.v0, r.v1), beside);
        });
      };
      to_queries(at.slant(), k);
      if (second) to_queries(at.dS, tk);
    }
    sums.end();
    S factor[LANES];
    for (S& f : factor) f = at.scale;
    if (p.dq) tile.write(sums.at, p.K, factor, p.dq);
    if (p.slopes) tile.write(at.slope, p.slopes);
    if (p.slopes && !tile.finite(at.slope)) *p.broken = true;
  }

  if (p.parts) {
    *part.first = n0, *part.last = reach;
  } else {
    const auto sum = [&, n0 = n0](const S* from, long width) {
      return [=](long n, long f) { return n >= n0 && n < reach ? load(from + (n - n0) * width + f) : Vec<S>{}; };
    };
    hand_out<Kind>(p, head, 0, p.N, p.K, at.scale, p.dk, sum(dk, wk));
    hand_out<Kind>(p, head, 0, p.N, p.V, (S)1, p.dv, sum(dv, wv));
  }
  return arena.used;
}

// What the chunks of a key head left, BLOCK keys of it, in one order.
template <class Kind> size_t gather(const Problem& p, int64_t index, Arena arena) {
  typedef typename Kind::S S;
  const long blocks = (p.N + BLOCK - 1) / BLOCK, head = index / blocks, n0 = index % blocks * BLOCK;
  if (!arena.front) return 0;
  const auto hand = [&](bool values, long features, S times, void* to) {
    const auto sum = [&](long n, long f) {
      Vec<S> x{};
      for (long chunk = 0; chunk < p.chunks; chunk++) {
        const Part<S> part(p, head, chunk);
        if (n >= *part.first && n < *part.last)
          x += load((values ? part.dv : part.dk) + (n - *part.first) * up(features, L<S>) + f);
      }
      return x;
    };
    hand_out<Kind>(p, head, n0, std::min<long>(n0 + BLOCK, p.N), features, times, to, sum);
  };
  hand(false, p.K, (S)p.scale, p.dk), hand(true, p.V, 1, p.dv);
  return 0;
}

// The gradient of a dense bias, dS or ḋS summed over what it broadcasts. A task has one slice of it, the tiles of all
// that share it in a fixed order, and, where queries have rows of their own, 64 rows.
template <class Kind, bool second> size_t dense_gradient(const Problem& p, int64_t index, Arena arena) {
  typedef typename Kind::S S;
  const bool counts = !arena.front;
  const long tiles = (p.M + LANES - 1) / LANES, parts = p.dense_M == 1 ? 1 : tiles, slice = index / parts,
             part = index % parts;
  const bool often = Task::often(p);
  Slope<Kind, second> at(p, false, arena);
  S* sums = arena.take<S>(p.N * LANES);
  const Arena rest = arena;
  if (!counts) std::memset(sums, 0, p.N * LANES * sizeof(S));
  for (long b = 0; b < p.B; b++)
    for (long h = 0; h < p.H; h++) {
      const long g = h / p.R;
      if (p.slice[b * p.H + h] != slice && !counts) continue;
      arena = rest;
      const auto keys = [&](const Sequence& t, long features) {
        return Keys<Kind>::of(t, b, g, 0, p.N, features, false, often, arena);
      };
      auto k = keys(p.x.k, p.K), v = keys(p.x.v, p.V), tk = keys(p.u.k, p.K), tv = keys(p.u.v, p.V);
      if (counts) return arena.used;
      for (Keys<Kind>* each : {&k, &v, &tk, &tv}) each->reach(p.N);
      Tile<Kind> tile(p, b, g);
      for (long t = part; t < tiles; t += parts) {
        tile.set_of(h, t);
        at.begin(tile);
        for (tile.start(); tile.advance();) {
          for (const Run& r : tile) {
            const long n = r.n;
            at.run(tile, r, n, k, v, tk, tv);
            for (int j = r.at; j < r.at + r.rows; j++)
              for (int u = r.v0; u < r.v1; u++) {
                S* to = sums + (n + j) * LANES + u * L<S>;
                store(to, load(to) + load(at.slant().row(j) + u * L<S>));
              }
          }
        }
      }
    }
  S* result = (S*)p.dense + slice * p.dense_M * p.dense_N;
  for (long i = 0; i < LANES && part * LANES + i < p.M; i++) {
    const long row = p.dense_M == 1 ? 0 : part * LANES + i;
    for (long n = 0; n < p.N; n++) {
      S& to = result[row * p.dense_N + (p.dense_N == 1 ? 0 : n)];
      if (sums[n * LANES + i] - sums[n * LANES + i] != 0) *p.broken = true;
      to = (i && p.dense_M == 1) || (n && p.dense_N == 1) ? to + sums[n * LANES + i] : sums[n * LANES + i];
    }
  }
  return arena.used;
}

}  // namespace
