// forward of few queries, as in decoding: it takes as long as memory takes to bring keys and values.
//
//     s = scale · q kᵀ + bias        a row, which is a query of a head, by key
//     m ← max(m, s),  l ← l · 2^(m_old − m) + Σ 2^(s − m),  o ← o · 2^(m_old − m) + (D ∘ 2^(s − m)) v
//
// The keys of one head may lie pages apart, while those of all heads lie side by side: so a task takes many heads, a
// group of keys at a time. Keys are cut into ranges, a task each, by the shape alone, so that threads change no bit;
// `merge` brings the (m, l, o) of a row's ranges together, in their order.
#pragma once

namespace {

// Tasks of a call of few queries: `blocks` of `heads` key heads, and `ranges` of `keys` keys; none, if it is not one.
template <class Kind> struct Split {
  typedef typename Kind::S S;
  static constexpr long FEW = 16;  // rows of a key head, beyond which products with lanes of queries are as fast
  static constexpr long PAGE = 4096, WORK = 1 << 19;  // bytes of a key's heads at most, and of a range at least
  static constexpr long ROWS = 128, TASKS = 64;       // rows of a task at most, and tasks of a call where it is cut

  long heads = 0, blocks = 0, keys = 0, ranges = 0, width = 0;

  static Split of(const Problem& p) {
    const long R = p.R * p.M, size = sizeof(typename Kind::T);
    Split s;
    if (!R || R > FEW) return s;
    const bool beside = p.x.k.head <= p.x.k.length && !p.layout.head;  // heads with tiles of their own go one by one
    const long rows = p.layout.live ? LANES : ROWS;
    s.heads = beside ? std::clamp<long>(std::min(PAGE / (p.K * size), rows / R), 1, p.G) : 1;
    s.blocks = (p.G + s.heads - 1) / s.heads, s.width = up(p.V, L<S> * Kind::PAIR);
    const long key = s.heads * (p.K + p.V) * size, part = s.heads * R * s.part() * sizeof(S);
    const long most = std::max<long>(1, TASKS / std::max<long>(1, p.B * s.blocks));
    s.keys = up(std::max((p.N + most - 1) / most, std::max(WORK, 16 * part) / key), BLOCK);
    s.ranges = std::max<long>(1, (p.N + s.keys - 1) / s.keys);
    return s;
  }
  long tasks(const Problem& p) const { return p.B * blocks * ranges; }
  long part() const { return width + L<S>; }  // o, m and l of one row and range
  size_t bytes(const Problem& p) const { return ranges > 1 ? p.B * ranges * p.H * p.M * part() * sizeof(S) : 0; }
};

template <class Kind> struct Decode {
  typedef Few<Kind> F;
  typedef typename Kind::T T;
  typedef typename Kind::S S;
  typedef Int<S> I;
  static constexpr int J = F::J, N = F::N, WIDE = F::WIDE;
  static constexpr long GROUP = 16;        // keys of one head, before those of the next
  static constexpr long FAR = 32768;       // bytes ahead
  static constexpr long CACHED = 3 << 20;  // a call of fewer bytes is taken to be in a cache

  const Problem& p;
  const Split<Kind> split;
  const long R, wk, wv;
  const bool biased, cached;
  const S c;
  long b = 0, g0 = 0, heads = 0;
  S *q = nullptr, *o = nullptr, *s = nullptr, *top = nullptr, *sum = nullptr;  // of each row: words, and vectors
  Lines lines;                                                                 // of a layout

  explicit Decode(const Problem& p)
      : p(p),
        split(Split<Kind>::of(p)),
        R(p.R * p.M),
        wk(up(p.K, N) / Kind::PAIR),
        wv(split.width),
        biased(p.x.dense.data || p.x.slopes.data || p.x.spoilt.data || p.scale < TINY),
        cached(p.B * p.N * p.G * (p.K + p.V) * (long)sizeof(T) <= CACHED),
        c(biased ? (S)LOG2E : (S)(p.scale * LOG2E)) {}

  size_t run(long task, Arena arena) {
    const long range = task % split.ranges, block = task / split.ranges % split.blocks;
    b = task / split.ranges / split.blocks, g0 = block * split.heads, heads = std::min(split.heads, p.G - g0);
    const long rows = heads * R, start = range * split.keys, end = std::min(p.N, start + split.keys);
    q = arena.take<S>(rows * wk), o = arena.take<S>(rows * wv), s = arena.take<S>(rows * BLOCK);
    top = arena.take<S>(rows * J), sum = arena.take<S>(rows * J);
    long *lo = arena.take<long>(rows), *hi = arena.take<long>(rows);
    if (!arena.front) return arena.used;

    long first = end, last = start;
    for (long i = 0; i < rows; i++) {
      const long m = query(i);
      lo[i] = p.lo.data ? std::max<long>(start, p.lo.data[p.lo.batch[b] + m * p.lo.query]) : start;
      hi[i] = p.hi.data ? std::min<long>(end, p.hi.data[p.hi.batch[b] + m * p.hi.query]) : end;
      if (lo[i] < hi[i]) first = std::min(first, lo[i]), last = std::max(last, hi[i]);
      store(top + i * J, splat(-infinity<S>)), store(sum + i * J, Vec<S>{});
      const T* from = (const T*)p.x.q.data + p.x.q.batch[b] + m * p.x.q.length + head(i) * p.x.q.head;
      for (long f = 0; f < p.K; f += N) store(q + i * wk + f / Kind::PAIR, Kind::words(from + f, (int)(p.K - f)));
    }
    std::memset(o, 0, rows * wv * sizeof(S));
    if (p.layout.live) set_lines(rows);
    for (long n = first / STEP * STEP, count; (count = next(n, last)) > 0; n += count) {
      scores(n, count);
      for (long i = 0; i < rows; i++) soften(i, n, count, lo[i] - n, hi[i] - n);
      mix(n, count);
    }
    for (long i = 0; i < rows; i++) {
      const S m = top[i * J], l = total<S>(load(sum + i * J));
      if (split.ranges == 1) {
        finish(head(i), query(i), o + i * wv, m, l);
      } else {
        S* to = part(range, head(i) * p.M + query(i));
        std::memcpy(to, o + i * wv, wv * sizeof(S));
        to[wv] = m, to[wv + 1] = l;
      }
    }
    return arena.used;
  }

  // The rows of one example and head.
  size_t merge(long task, Arena arena) {
    o = arena.take<S>(wv);
    if (!arena.front) return arena.used;
    b = task / p.H;
    for (long m = 0; m < p.M; m++) {
      const long row = task % p.H * p.M + m;
      S most = -infinity<S>, l = 0;
      for (long i = 0; i < split.ranges; i++) most = std::max(most, part(i, row)[wv]);
      std::memset(o, 0, wv * sizeof(S));
      for (long i = 0; i < split.ranges; i++) {
        const S* from = part(i, row);
        if (from[wv + 1] == 0) continue;  // it saw nothing
        const Vec<S> by = exp2v<Kind::degree, true>(splat((from[wv] - most) * c));
        l += from[wv + 1] * by[0];
        for (long f = 0; f < wv; f += J) store(o + f, load(o + f) + load(from + f) * by);
      }
      finish(task % p.H, m, o, most, l);
    }
    return arena.used;
  }

 private:
  long query(long i) const { return i % p.M; }
  long head(long i) const { return g0 * p.R + i / p.M; }
  S* part(long range, long row) const {
    return (S*)p.parts + ((b * split.ranges + range) * p.H * p.M + row) * split.part();
  }
  const T* at(const Sequence& t, long g, long n) const {
    return (const T*)t.data + t.batch[b] + (g0 + g) * t.head + n * t.length;
  }
  void set_lines(long rows) {
    int m[LANES], h[LANES];
    for (long i = 0; i < LANES; i++) m[i] = (int)query(std::min(i, rows - 1)), h[i] = (int)head(std::min(i, rows - 1));
    lines.set(p.layout, b, m, h);
  }
  // How many keys come together, of a layout from the next one on that is live in any row.
  long next(long& n, long last) const {
    const Layout& y = p.layout;
    if (!y.live) return std::min(BLOCK, last - n);
    long column = lines.seek(n >> y.shift, y.columns);
    n = std::max(n, column * y.size);
    const long end = std::min(n + BLOCK, last);
    while (column < y.columns && column * y.size < end && lines.any(column)) column++;
    return std::min(column * y.size, end) - n;
  }
  // −∞ where a layout does not show row i one of the keys n + [0, count).
  void hide(long i, long n, long count, S* row) const {
    const long step = std::min<long>(STEP, p.layout.size), all = (1l << step) - 1;
    for (long j = 0; j < count; j += step) {
      const long seen = lines.bits(p.layout, b, (int)i, (int)query(i), n + j) & all;
      for (long u = 0; seen != all && u < step; u++)
        if (!(seen >> u & 1)) row[j + u] = -infinity<S>;
    }
  }
  static long far(const Sequence& t) {
    return std::clamp<long>(FAR / std::max<long>(1, t.length * sizeof(T)), GROUP, 1024) * t.length;
  }

  void scores(long n, long count) const {
    const long step = p.x.k.length, ahead = far(p.x.k);
    for (long j = 0; j < count; j += GROUP)
      for (long g = 0; g < heads; g++) {
        const T* k = at(p.x.k, g, n + j);
        const long some = std::min(GROUP, count - j);
        F::by_rows(R, [&]<int rows>(std::integral_constant<int, rows>, long r) INLINE_LAMBDA {
          constexpr int each = J / rows;
          const S* from = q + (g * R + r) * wk;
          S* to = s + (g * R + r) * BLOCK + j;
          for (long i = 0; i < some; i += each) {
            const auto dots = [&]<bool whole, bool asks>() INLINE_LAMBDA {
              return F::template dots<rows, whole, asks>(from, wk, k + i * step, step, ahead, some - i, p.K);
            };
            const Vec<S> x = i + each > some     ? dots.template operator()<false, false>()
                             : !cached && r == 0 ? dots.template operator()<true, true>()
                                                 : dots.template operator()<true, false>();
            for (int u = 0; u < rows; u++) std::memcpy(to + u * BLOCK + i, (const S*)&x + u * each, each * sizeof(S));
          }
        });
      }
  }

  void mix(long n, long count) const {
    const long step = p.x.v.length, ahead = far(p.x.v);
    for (long j = 0; j < count; j += GROUP)
      for (long g = 0; g < heads; g++) {
        const T* v = at(p.x.v, g, n + j);
        const long some = std::min(GROUP, count - j);
        F::by_rows(R, [&]<int rows>(std::integral_constant<int, rows>, long r) INLINE_LAMBDA {
          const S* P = s + (g * R + r) * BLOCK + j / Kind::PAIR;
          S* to = o + (g * R + r) * wv;
          long f = 0;
          const auto some_of = [&]<int wide>(std::integral_constant<int, wide>, int left) INLINE_LAMBDA {
            if (!cached && r == 0)
              F::template sums<rows, wide, true>(P, BLOCK, v + f, step, ahead, some, left, to + f, wv);
            else
              F::template sums<rows, wide, false>(P, BLOCK, v + f, step, ahead, some, left, to + f, wv);
            f += wide * N;
          };
          while (f + WIDE * N <= p.V) some_of(std::integral_constant<int, WIDE>{}, N);
          if (WIDE == 4 && f + 2 * N <= p.V) some_of(std::integral_constant<int, 2>{}, N);
          while (f < p.V) some_of(std::integral_constant<int, 1>{}, (int)std::min<long>(N, p.V - f));
        });
      }
  }

  // A row's products to weights, where it sees the keys n + [from, to) of `count`.
  void soften(long i, long n, long count, long from, long to) {
    S* const row = s + i * BLOCK;
    if (biased) add(i, n, count, row);
    if (p.layout.index || lines.count > 1) hide(i, n, count, row);
    Vec<I> lanes;
    for (int u = 0; u < J; u++) lanes[u] = u;
    const Vec<S> old = load(top + i * J);
    Vec<S> most = old;
    from = std::max(from, 0l), to = std::min(to, count);
    for (long j = 0; j < count; j += J) {
      Vec<S> x = load(row + j);
      if (j < from || to < j + J) {
        const Vec<I> key = lanes + (I)j;
        x = (key >= (I)from) & (key < (I)to) ? x : splat(-infinity<S>);
        store(row + j, x);
      }
      most = larger(x, most);
    }
    most = highest<S>(most);
    const Vec<S> base = most == -infinity<S> ? Vec<S>{} : most, less = exp2v<Kind::degree, true>((old - base) * c);
    Vec<S> l = load(sum + i * J) * less;
    for (long j = 0; j < count; j += J) {
      Vec<S> e = exp2v<Kind::degree, true>((load(row + j) - base) * c);
      l += e;
      if (p.key) e *= keep(i, n + j);
      if constexpr (Kind::PAIR == 2)
        Kind::narrow(e, row, j);
      else
        store(row + j, e);
    }
    store(top + i * J, most), store(sum + i * J, l);
    if (less[0] != 1)
      for (long f = 0; f < wv; f += J) store(o + i * wv + f, load(o + i * wv + f) * less);
  }

  void finish(long h, long m, const S* from, S most, S l) const {
    const S some = l == 0 ? 1 : l, by = l == 0 ? 0 : (S)(1 / p.keep) / some;
    Vec<S> broken{};
    for (long f = 0; f < p.V; f += J) {
      const Vec<S> x = load(from + f) * by;
      broken += x - x;
      narrow(x, (T*)p.out + ((b * p.M + m) * p.H + h) * p.V + f, (int)(p.V - f));
    }
    if (total<S>(broken) != 0) *p.broken = true;
    const S lse = most * (biased ? (S)1 : (S)p.scale) + logv(splat(some))[0];
    ((S*)p.lse)[(b * p.H + h) * p.M + m] = l == 0 ? -infinity<S> : lse;
  }

  // A row's natural logits, from its products.
  void add(long i, long n, long count, S* row) const {
    const Operands& x = p.x;
    const long m = query(i), h = head(i), g = h / p.R;
    const auto number = [&](const Rows& t, long head, long at) {
      return t.data ? ((const S*)t.data)[t.batch[b] + head * t.head + at * t.length] : (S)0;
    };
    const S slope = number(x.slopes, h, 0), spoilt = number(x.spoilt, h, m);
    for (long j = 0; j < count; j++) {
      row[j] *= (S)p.scale;
      if (x.slopes.data) row[j] -= slope * (S)std::abs(m - n - j);
      if (x.unsound.data) row[j] += spoilt + number(x.unsound, g, n + j);
    }
    const auto dense = [&]<class D>(const D* d) {
      d += x.dense.batch[b] + h * x.dense.head + m * x.dense.query + n * x.dense.key;
      for (long j = 0; j < count; j++, d += x.dense.key) {
        const S y = number_of(*d);
        row[j] = y == -infinity<S> ? y : row[j] + y;
      }
    };
    if (!x.dense.data) return;
    switch (x.dense.dtype) {
      case Dtype::f32:
        return dense((const float*)x.dense.data);
      case Dtype::f64:
        return dense((const double*)x.dense.data);
      case Dtype::bf16:
        return dense((const bf16*)x.dense.data);
      case Dtype::f16:
        return dense((const f16*)x.dense.data);
      case Dtype::boolean:
        return dense((const bool*)x.dense.data);
    }
  }
  template <class D> static S number_of(D d) { return (S)d; }
  static S number_of(bool d) { return d ? 0 : -infinity<S>; }
  static S number_of(bf16 d) { return (S)cast<float>((uint32_t)d.bits << 16); }

  // 1 where dropout keeps a weight of keys n, n + 1, …; 0 where it does not.
  Vec<S> keep(long i, long n) const {
    uint32_t words[4];
    Vec<S> kept;
    for (int u = 0; u < J; u++) {
      if (u % 8 == 0) philox(p.key + p.key_batch[b], (n + u) / 8, query(i), head(i), words);
      kept[u] = (words[(n + u) % 8 / 2] >> u % 2 * 16 & 0xffff) >= p.threshold ? (S)1 : (S)0;
    }
    return kept;
  }
};

}  // namespace
