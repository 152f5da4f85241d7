// Attention over the entries of a sparse pattern, and the products of which it is made. A number is summed by one task, in
// the order of the entries of one line; so neither threads nor chunks change a bit.
//
//     forward    s = scale · q · k,  P = softmax(s) over a row,  out = Σ (P ∘ D) v,  lse
//     delta      δ = dout · out − dlse, a number a query
//     queries    dS = P ∘ (D ∘ (dout · v) − δ),  dq = scale Σ dS k               by row
//     keys       dk = scale Σ dS q,  dv = Σ (P ∘ D) dout                        by column, P and dS computed again
//     between    values = q · k
//     mix        Σ values · v by row, or Σ values · q by column
//     softmax    of values, over a row
#pragma once

namespace {

// What one task works on: lines [first, last) of one head of the side that is gathered from.
struct Share {
  long b, g, first, last;
  static Share of(const SparseProblem& p, int64_t task, long heads, long lines) {
    const long chunk = task % p.chunks, head = task / p.chunks;
    return {head / heads, head % heads, lines * chunk / p.chunks, lines * (chunk + 1) / p.chunks};
  }
};

struct Entries {  // of one head
  const int32_t *ends, *places, *order;
  static Entries of(const Listing& t, long b, long h) {
    const long at = b * t.place_batch + h * t.place_head;
    return {t.ends + b * t.batch + h * t.head, t.places + at, t.order ? t.order + at : nullptr};
  }
  long begin(long line) const { return line ? ends[line - 1] : 0; }
  long count(long line) const { return ends[line] - begin(line); }
  bool often(long first, long last, long rows) const {
    return first < last && ends[last - 1] - begin(first) >= 4 * rows;
  }
};

constexpr long SOME = 32;  // entries whose rows a backward reads twice, the second time from the nearest cache

// Numbers of one line, with room for a whole last vector.
template <class S> INLINE S* line_of(const SparseProblem& p, Arena& arena) { return arena.take<S>(p.longest + L<S>); }

// 1 / keep where dropout keeps an entry, 0 where it does not; query and key are numbers, or functions of the entry.
template <class S, class Query, class Key>
INLINE void kept(const SparseProblem& p, long b, long h, long n, const Query& query, const Key& key, S* to) {
  const int64_t* seed = p.key + b * p.key_batch;
  const S grow = (S)(1 / p.keep);
  for (long j = 0; j < n; j += L<S>) {
    uint32_t words[4][L<S>], lane[L<S>];
    for (int i = 0; i < L<S>; i++) {
      const long at = std::min(j + i, n - 1);
      lane[i] = (uint32_t)key(at);
      uint32_t c0 = lane[i] / 8, c1 = (uint32_t)query(at), c2 = (uint32_t)h, c3 = 0, k0 = (uint32_t)seed[0],
               k1 = (uint32_t)seed[1];
      for (int round = 0; round < 7; round++) {
        const uint64_t x = (uint64_t)c0 * 0xD2511F53u, y = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(y >> 32) ^ c1 ^ k0, c1 = (uint32_t)y, c2 = (uint32_t)(x >> 32) ^ c3 ^ k1, c3 = (uint32_t)x;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
      }
      words[0][i] = c0, words[1][i] = c1, words[2][i] = c2, words[3][i] = c3;
    }
    for (int i = 0; i < L<S>; i++)
      to[j + i] = (words[lane[i] / 2 % 4][i] >> lane[i] % 2 * 16 & 0xffff) >= p.threshold ? grow : (S)0;
  }
}

// s becomes 2^(s c − its maximum), and the maximum and the sum are returned.
template <class Kind, class S = typename Kind::S> INLINE std::pair<S, S> soften(S* s, long n, S c) {
  Vec<Int<S>> lanes;
  for (int i = 0; i < L<S>; i++) lanes[i] = i;
  Vec<S> most = splat(-infinity<S>);
  for (long j = 0; j < n; j += L<S>) {
    const Vec<S> z = lanes < splat<Int<S>>((Int<S>)(n - j)) ? load(s + j) * c : splat(-infinity<S>);
    store(s + j, z);
    most = larger(z, most);
  }
  const S top = across<S>(most, [](Vec<S> a, Vec<S> b) { return larger(a, b); });
  const S peak = top == -infinity<S> ? 0 : top;
  Vec<S> sum{};
  for (long j = 0; j < n; j += L<S>) {
    const Vec<S> e = exp2v<Kind::degree, true>(load(s + j) - peak);
    sum += e;
    store(s + j, e);
  }
  return {top, across<S>(sum, [](Vec<S> a, Vec<S> b) { return a + b; })};
}

template <class Kind, class T, class S = typename Kind::S>
INLINE void finish(const S* o, S times, long features, T* to, long step, long left) {
  fetch_row<1>(to + std::min(AHEAD, left) * step, features);
  for (long f = 0; f < features; f += L<S>)
    narrow(load(o + f) * times, to + f, (int)std::min<long>(L<S>, features - f));
}

template <class Kind> size_t attend(const SparseProblem& p, int64_t task, Arena arena) {
  typedef typename Kind::S S;
  // Rows side by side: so many that keys, and then values, stay in the nearest caches for a while.
  constexpr long MOST = 64, ROOM = 1 << 15;
  const long line = up(p.longest + L<S>, L<S>), side = std::clamp<long>(ROOM / line, 4, MOST);
  const long R = p.H / p.G, wk = up(p.K, Gathered<Kind>::WORDS) / Kind::PAIR, wv = up(p.V, L<S>);
  const Share at = Share::of(p, task, p.G, p.M);
  S *q = arena.take<S>(wk), *o = arena.take<S>(wv), *lines = arena.take<S>(side * line),
    *d = p.key ? arena.take<S>(line) : nullptr;
  const bool often = arena.front && Entries::of(p.rows, at.b, at.g * R).often(at.first, at.last, p.N);
  const auto k = Gathered<Kind>::of(p.k, at.b, at.g, p.N, p.K, often, arena);
  const auto v = Gathered<Kind>::of(p.v, at.b, at.g, p.N, p.V, often, arena);
  if (!arena.front) return arena.used;
  for (long h = at.g * R; h < (at.g + 1) * R; h++) {
    const Entries e = Entries::of(p.rows, at.b, h);
    for (long first = at.first; first < at.last; first += side) {
      const long rows = std::min(side, at.last - first);
      S top[MOST + L<S>] = {}, sum[MOST + L<S>] = {};
      for (long i = 0; i < rows; i++) {
        Gathered<Kind>::pack(p.q, at.b, h, first + i, at.last, p.K, q);
        k.dot(q, e.places + e.begin(first + i), e.count(first + i), lines + i * line);
      }
      for (long i = 0; i < rows; i++)
        std::tie(top[i], sum[i]) = soften<Kind>(lines + i * line, e.count(first + i), (S)(p.scale * LOG2E));
      for (long i = 0; i < rows; i++) {
        const long m = first + i, n = e.count(m);
        const int32_t* index = e.places + e.begin(m);
        S* const s = lines + i * line;
        if (d) {
          kept<S>(p, at.b, h, n, [&](long) { return m; }, [&](long j) { return index[j]; }, d);
          for (long j = 0; j < n; j++) s[j] *= d[j];
        }
        std::memset(o, 0, wv * sizeof(S));
        v.add(s, index, n, o);
        finish<Kind>(o, sum[i] == 0 ? (S)0 : 1 / sum[i], p.V,
                     (typename Kind::T*)p.result + ((at.b * p.M + m) * p.H + h) * p.V, p.H * p.V, at.last - 1 - m);
      }
      for (long i = 0; i < rows; i += L<S>) {
        const Vec<S> l = load(sum + i), some = l == 0 ? splat<S>(1) : l;
        const Vec<S> lse = l == 0 ? splat(-infinity<S>) : load(top + i) * (S)0.6931471805599453 + logv(some);
        for (long j = 0; j < L<S> && i + j < rows; j++)
          ((S*)p.result2)[(at.b * p.H + h) * p.M + first + i + j] = lse[j];
      }
    }
  }
  return arena.used;
}

template <class Kind> size_t delta(const SparseProblem& p, int64_t task, Arena arena) {
  typedef typename Kind::S S;
  typedef typename Kind::T T;
  const Share at = Share::of(p, task, p.H, p.M);
  if (!arena.front) return arena.used;
  for (long m = at.first; m < at.last; m++) {
    Vec<S> sum{};
    if (p.dout.data)
      for (long f = 0; f < p.V; f += L<S>) {
        const auto part = [&](const Features& t) {
          const T* row = (const T*)t.data + at.b * t.batch + m * t.length + at.g * t.head;
          return widen(row + f, (int)std::min<long>(L<S>, p.V - f));
        };
        sum += part(p.dout) * part(p.out);
      }
    const auto number = [&](const PerHead& t) {
      return t.data ? ((const S*)t.data)[at.b * t.batch + at.g * t.head + m] : (S)0;
    };
    const bool blind = number(p.lse) == -infinity<S>;
    ((S*)p.result)[(at.b * p.H + at.g) * p.M + m] = blind ? (S)0 : total<S>(sum) - number(p.dlse);
  }
  return arena.used;
}

// P ∘ D into s and dS into y, which hold q · k and dout · v; lse and δ are numbers, or functions of the entry.
template <class Kind, class S, class Lse, class Delta>
INLINE void slope_of(const SparseProblem& p, S* s, S* y, const S* d, long n, const Lse& lse, const Delta& delta) {
  const S c = (S)(p.scale * LOG2E);
  for (long j = 0; j < n; j += L<S>) {
    const Vec<S> P = exp2v<Kind::degree, true>(load(s + j) * c - lse(j)), keep = d ? load(d + j) : splat<S>(1);
    store(s + j, P * keep);
    store(y + j, P * (load(y + j) * keep - delta(j)));
  }
}

// lse in base 2, +∞ where nothing is seen.
template <class S> INLINE S base2(S lse) { return lse == -infinity<S> ? infinity<S> : lse * (S)LOG2E; }

template <class Kind> size_t to_queries(const SparseProblem& p, int64_t task, Arena arena) {
  typedef typename Kind::S S;
  const long R = p.H / p.G, wk = up(p.K, Gathered<Kind>::WORDS), wv = up(p.V, Gathered<Kind>::WORDS);
  S *q = arena.take<S>(wk), *dout = arena.take<S>(wv), *o = arena.take<S>(wk);
  S s[SOME], y[SOME] = {}, d[SOME];
  const Share at = Share::of(p, task, p.G, p.M);
  const bool often = arena.front && Entries::of(p.rows, at.b, at.g * R).often(at.first, at.last, p.N);
  const auto k = Gathered<Kind>::of(p.k, at.b, at.g, p.N, p.K, often, arena);
  const auto v = Gathered<Kind>::of(p.dout.data ? p.v : Features{}, at.b, at.g, p.N, p.V, often, arena);
  if (!arena.front) return arena.used;
  for (long h = at.g * R; h < (at.g + 1) * R; h++) {
    const Entries e = Entries::of(p.rows, at.b, h);
    for (long m = at.first; m < at.last; m++) {
      const long end = e.ends[m];
      Gathered<Kind>::pack(p.q, at.b, h, m, at.last, p.K, q);
      if (v) Gathered<Kind>::pack(p.dout, at.b, h, m, at.last, p.V, dout);
      const Vec<S> lse = splat(base2(((const S*)p.lse.data)[at.b * p.lse.batch + h * p.lse.head + m])),
                   delta = splat(((const S*)p.delta.data)[at.b * p.delta.batch + h * p.delta.head + m]);
      std::memset(o, 0, wk * sizeof(S));
      for (long z = e.begin(m); z < end; z += SOME) {
        const long n = std::min(SOME, end - z);
        const int32_t* index = e.places + z;
        k.dot(q, index, n, s);
        if (v) v.dot(dout, index, n, y);
        if (p.key) kept<S>(p, at.b, h, n, [&](long) { return m; }, [&](long j) { return index[j]; }, d);
        slope_of<Kind>(p, s, y, p.key ? d : nullptr, n, [&](long) { return lse; }, [&](long) { return delta; });
        k.add(y, index, n, o);
        if (!v) std::memset(y, 0, sizeof y);
      }
      finish<Kind>(o, (S)p.scale, p.K, (typename Kind::T*)p.result + ((at.b * p.M + m) * p.H + h) * p.K, p.H * p.K,
                   at.last - 1 - m);
    }
  }
  return arena.used;
}

template <class Kind> size_t to_keys(const SparseProblem& p, int64_t task, Arena arena) {
  typedef typename Kind::S S;
  typedef typename Kind::T T;
  const long R = p.H / p.G, wk = up(p.K, Gathered<Kind>::WORDS), wv = up(p.V, Gathered<Kind>::WORDS);
  S *k = arena.take<S>(wk), *v = arena.take<S>(wv);
  S* lines = arena.take<S>(2 * p.M);  // lse and δ of each query
  S s[SOME], y[SOME] = {}, d[SOME], lse[SOME] = {}, delta[SOME] = {};
  const Share at = Share::of(p, task, p.G, p.N);
  S* const sums = arena.take<S>((R > 1 ? (p.N + p.chunks - 1) / p.chunks + 1 : 1) * (wk + wv));
  const Arena rest = arena;
  for (long h = at.g * R; h < (at.g + 1) * R; h++) {
    arena = rest;
    const bool often = arena.front && Entries::of(p.columns, at.b, h).often(at.first, at.last, p.M);
    const auto q = Gathered<Kind>::of(p.q, at.b, h, p.M, p.K, often, arena);
    const auto dout = Gathered<Kind>::of(p.dout, at.b, h, p.M, p.V, often, arena);
    if (!arena.front) return arena.used;
    const Entries e = Entries::of(p.columns, at.b, h);
    for (long m = 0; m < p.M; m++) {
      lines[2 * m] = base2(((const S*)p.lse.data)[at.b * p.lse.batch + h * p.lse.head + m]);
      lines[2 * m + 1] = ((const S*)p.delta.data)[at.b * p.delta.batch + h * p.delta.head + m];
    }
    for (long key = at.first; key < at.last; key++) {
      const long end = e.ends[key];
      S *dk = sums + (R > 1 ? key - at.first : 0) * (wk + wv), *dv = dk + wk;
      if (h == at.g * R) std::memset(dk, 0, (wk + wv) * sizeof(S));
      Gathered<Kind>::pack(p.k, at.b, at.g, key, at.last, p.K, k);
      if (dout) Gathered<Kind>::pack(p.v, at.b, at.g, key, at.last, p.V, v);
      for (long z = e.begin(key); z < end; z += SOME) {
        const long n = std::min(SOME, end - z);
        const int32_t* index = e.places + z;
        for (long j = 0; j < n; j++) lse[j] = lines[2 * index[j]], delta[j] = lines[2 * index[j] + 1];
        q.dot(k, index, n, s);
        if (dout) dout.dot(v, index, n, y);
        if (p.key) kept<S>(p, at.b, h, n, [&](long j) { return index[j]; }, [&](long) { return key; }, d);
        slope_of<Kind>(
            p, s, y, p.key ? d : nullptr, n, [&](long j) { return load(lse + j); },
            [&](long j) { return load(delta + j); });
        if (p.result) q.add(y, index, n, dk);
        if (p.result2 && dout) dout.add(s, index, n, dv);
        if (!dout) std::memset(y, 0, sizeof y);
      }
      if (h + 1 < (at.g + 1) * R) continue;
      const long row = (at.b * p.N + key) * p.G + at.g;
      if (p.result) finish<Kind>(dk, (S)p.scale, p.K, (T*)p.result + row * p.K, p.G * p.K, at.last - 1 - key);
      if (p.result2) finish<Kind>(dv, (S)1, p.V, (T*)p.result2 + row * p.V, p.G * p.V, at.last - 1 - key);
    }
  }
  return arena.used;
}

template <class Kind> size_t between(const SparseProblem& p, int64_t task, Arena arena) {
  typedef typename Kind::S S;
  const long R = p.H / p.G;
  S *q = arena.take<S>(up(p.K, Gathered<Kind>::WORDS)), *s = line_of<S>(p, arena);
  const Share at = Share::of(p, task, p.G, p.M);
  const bool often = arena.front && Entries::of(p.rows, at.b, at.g * R).often(at.first, at.last, p.N);
  const auto k = Gathered<Kind>::of(p.k, at.b, at.g, p.N, p.K, often, arena);
  if (!arena.front) return arena.used;
  for (long h = at.g * R; h < (at.g + 1) * R; h++) {
    const Entries e = Entries::of(p.rows, at.b, h);
    S* values = (S*)p.result + (at.b * p.H + h) * p.Z;
    for (long m = at.first; m < at.last; m++) {
      const long n = e.count(m);
      Gathered<Kind>::pack(p.q, at.b, h, m, at.last, p.K, q);
      k.dot(q, e.places + e.begin(m), n, s);
      std::copy_n(s, n, values + e.begin(m));  // of none, maybe to nowhere
    }
    if (at.last == p.M)  // behind the entries of a pattern that has fewer than another
      for (long z = p.M ? e.ends[p.M - 1] : 0; z < p.Z; z++) values[z] = 0;
  }
  return arena.used;
}

// By p.rows, whichever side that is, of p.M lines that meet p.N rows of p.v.
template <class Kind> size_t mixed(const SparseProblem& p, int64_t task, Arena arena) {
  typedef typename Kind::S S;
  const long each = p.H / p.heads, R = p.H / p.G, wv = up(p.V, L<S>);
  S *s = line_of<S>(p, arena), *sums = arena.take<S>((each > 1 ? (p.M + p.chunks - 1) / p.chunks + 1 : 1) * wv);
  const Share at = Share::of(p, task, p.heads, p.M);
  const Arena rest = arena;
  for (long h = at.g * each; h < (at.g + 1) * each; h++) {
    arena = rest;
    const bool often = arena.front && Entries::of(p.rows, at.b, h).often(at.first, at.last, p.N);
    const auto v = Gathered<Kind>::of(p.v, at.b, h / R, p.N, p.V, often, arena);
    if (!arena.front) return arena.used;
    const Entries e = Entries::of(p.rows, at.b, h);
    const S* values = (const S*)p.values.data + at.b * p.values.batch + h * p.values.head;
    for (long m = at.first; m < at.last; m++) {
      const long n = e.count(m), first = e.begin(m);
      S* o = sums + (each > 1 ? m - at.first : 0) * wv;
      if (h == at.g * each) std::memset(o, 0, wv * sizeof(S));
      for (long j = 0; e.order && j < n; j++) s[j] = values[e.order[first + j]];
      v.add(e.order ? s : values + first, e.places + first, n, o);
      if (h + 1 == (at.g + 1) * each)
        finish<Kind>(o, (S)1, p.V, (S*)p.result + ((at.b * p.M + m) * p.heads + at.g) * p.V, p.heads * p.V,
                     at.last - 1 - m);
    }
  }
  return arena.used;
}

template <class Kind> size_t softmax(const SparseProblem& p, int64_t task, Arena arena) {
  typedef typename Kind::S S;
  S* s = line_of<S>(p, arena);
  const Share at = Share::of(p, task, p.H, p.M);
  if (!arena.front) return arena.used;
  const Entries e = Entries::of(p.rows, at.b, at.g);
  const S* values = (const S*)p.values.data + at.b * p.values.batch + at.g * p.values.head;
  S* result = (S*)p.result + (at.b * p.H + at.g) * p.Z;
  for (long m = at.first; m < at.last; m++) {
    const long n = e.count(m), first = e.begin(m);
    if (!n) continue;
    S top = -infinity<S>;
    for (long j = 0; j < n; j++) top = std::max(top, values[first + j]);
    if (top == -infinity<S>) top = 0;
    for (long j = 0; j < n; j++) s[j] = values[first + j] - top;
    const auto [_, sum] = soften<Kind>(s, n, (S)LOG2E);
    for (long j = 0; j < n; j++) result[first + j] = sum == 0 ? (S)0 : s[j] / sum;
  }
  if (at.last == p.M)
    for (long z = p.M ? e.ends[p.M - 1] : 0; z < p.Z; z++) result[z] = 0;
  return arena.used;
}

template <class Kind> size_t sparse(const SparseProblem& p, SparseMember member, int64_t task, Arena arena) {
  switch (member) {
    case SparseMember::forward:
      return attend<Kind>(p, task, arena);
    case SparseMember::delta:
      return delta<Kind>(p, task, arena);
    case SparseMember::queries:
      return to_queries<Kind>(p, task, arena);
    case SparseMember::keys:
      return to_keys<Kind>(p, task, arena);
    case SparseMember::between:
      return between<Kind>(p, task, arena);
    case SparseMember::mix:
      return mixed<Kind>(p, task, arena);
    default:
      return softmax<Kind>(p, task, arena);
  }
}

}  // namespace
