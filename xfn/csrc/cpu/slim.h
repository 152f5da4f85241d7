// A tile of few queries, as in decoding: its products with lanes of features, straight from memory, each key read once.
#pragma once

namespace {

template <class Kind> struct Slim {
  typedef typename Kind::T T;
  typedef typename Kind::S S;
  static constexpr long FEW = 6;  // rows, from which on products with lanes of queries are faster

  const Problem& p;
  const T *k, *v;
  const long wk, wv;  // features, filled up to whole vectors
  S *q, *o;           // [row][feature]

  static constexpr long FAR = 12;  // keys ahead, for no prefetcher follows rows that lie pages apart
  static INLINE void fetch(const T* from, long features) {
    for (long f = 0; f < features; f += 64 / (long)sizeof(T)) __builtin_prefetch(from + f, 0, 3);
  }

  static bool fits(const Problem& p) { return p.H / p.G * p.M <= FEW; }
  Slim(const Problem& p, long b, long g, Arena& arena) : p(p), wk(up(p.K, L<S>)), wv(up(p.V, L<S>)) {
    q = arena.take<S>(FEW * wk), o = arena.take<S>(FEW * wv);
    k = (const T*)p.x.k.data + p.x.k.batch[b] + g * p.x.k.head,
    v = (const T*)p.x.v.data + p.x.v.batch[b] + g * p.x.v.head;
  }

  void begin(const Tile<Kind>& tile) {
    for (int i = 0; i < tile.count; i++)
      for (long f = 0; f < p.K; f += L<S>) store(q + i * wk + f, widen(tile.row(p.x.q, i) + f, (int)(p.K - f)));
    std::memset(o, 0, FEW * wv * sizeof(S));
  }

  // s[key][lane] of a run.
  void scores(const Tile<Kind>& tile, const Run& r, long n0, S* s) const {
    for (int n = r.at; n < r.at + r.rows; n += L<S>) {
      const int some = std::min(L<S>, r.at + r.rows - n);
      for (int i = 0; i < tile.count; i++) {
        Vec<S> x[L<S>];
#pragma GCC unroll 1
        for (int j = 0; j < L<S>; j++) {
          const T* key = k + (n0 + n + std::min(j, some - 1)) * p.x.k.length;
          if (i == 0) fetch(key + FAR * p.x.k.length, p.K);
          Vec<S> sum{};
          for (long f = 0; f < p.K; f += L<S>) sum += widen(key + f, (int)(p.K - f)) * load(q + i * wk + f);
          x[j] = sum;
        }
        transpose<S>(x);
        Vec<S> sum = x[0];
        for (int j = 1; j < L<S>; j++) sum += x[j];
        for (int j = 0; j < some; j++) s[(n + j) * LANES + i] = sum[j];
      }
    }
  }

  void shrink(const Tile<Kind>& tile, const S* by) const {
    for (int i = 0; i < tile.count; i++)
      for (long f = 0; f < wv; f += L<S>) store(o + i * wv + f, load(o + i * wv + f) * by[i]);
  }

  // o += P v over a run; P [key][lane].
  void mix(const Tile<Kind>& tile, const Run& r, long n0, const S* P) const {
    constexpr int W = 4;
    for (int i = 0; i < tile.count; i++)
      for (long f = 0; f < p.V; f += W * L<S>) {
        const int width = (int)std::min<long>(W, (p.V - f + L<S> - 1) / L<S>);
        Vec<S> x[W];
        for (int w = 0; w < W; w++) x[w] = w < width ? load(o + i * wv + f + w * L<S>) : Vec<S>{};
        for (int n = r.at; n < r.at + r.rows; n++) {
          const T* value = v + (n0 + n) * p.x.v.length + f;
          if (i == 0) fetch(value + FAR * p.x.v.length, std::min<long>(p.V - f, W * L<S>));
          const Vec<S> weight = splat(P[n * LANES + i]);
          for (int w = 0; w < W; w++)
            if (w < width) x[w] += weight * widen(value + w * L<S>, (int)(p.V - f - w * L<S>));
        }
        for (int w = 0; w < width; w++) store(o + i * wv + f + w * L<S>, x[w]);
      }
  }

  void write(const Tile<Kind>& tile, const S* factor, long b) const {
    Vec<S> broken{};
    for (int i = 0; i < tile.count; i++)
      for (long f = 0; f < p.V; f += L<S>) {
        const Vec<S> x = load(o + i * wv + f) * factor[i];
        broken += x - x;
        narrow(x, (T*)p.out + ((b * p.M + tile.m[i]) * p.H + tile.h[i]) * p.V + f, (int)(p.V - f));
      }
    if (total<S>(broken) != 0) *p.broken = true;
  }
};

}  // namespace
