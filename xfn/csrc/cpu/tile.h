// A tile: 64 queries of the heads that share a key head, one in each lane, and what the bias says about them.
#pragma once

namespace {

constexpr long BLOCK = 128;  // keys at a time
constexpr int STEP = 16;     // keys that are skipped, or masked, together

struct Run {  // rows [at, at + rows) of a block, keys n + at and on, against vectors [v0, v1) of lanes
  int at, rows, v0, v1;
  bool masked;       // some lanes do not see some keys,
  bool cut = false;  // as a layout says
  long n = 0;
  bool has(int v) const { return v0 <= v && v < v1; }
  Run part(int from, int most) const { return {from, std::min(most, at + rows - from), v0, v1, masked, cut, n}; }
  bool alike(const Run& next) const {
    return v0 == next.v0 && v1 == next.v1 && masked == next.masked && cut == next.cut && at + rows == next.at &&
           n == next.n;
  }
};

// A run's keys by twos, as pairs take them: put(key, row, next row, whether there is a next).
template <class Row, class Compute, class Put>
INLINE void two_by_two(const Run& r, const Compute& compute, const Put& put) {
  int j = r.at;
  for (; j + 1 < r.at + r.rows; j += 2) {
    const Row a = compute(j), b = compute(j + 1);
    put(j, a, b, true);
  }
  if (j < r.at + r.rows) put(j, compute(j), Row{}, false);
}

// Eight lanes of 16 bits for eight keys: Philox-4x32-7 at the counter (n / 8, m, h, 0).
INLINE void philox(const int64_t* key, long n8, long m, long h, uint32_t (&words)[4]) {
  uint32_t c0 = (uint32_t)n8, c1 = (uint32_t)m, c2 = (uint32_t)h, c3 = 0, k0 = (uint32_t)key[0], k1 = (uint32_t)key[1];
  for (int round = 0; round < 7; round++) {
    const uint64_t x = (uint64_t)c0 * 0xD2511F53u, y = (uint64_t)c2 * 0xCD9E8D57u;
    c0 = (uint32_t)(y >> 32) ^ c1 ^ k0, c1 = (uint32_t)y, c2 = (uint32_t)(x >> 32) ^ c3 ^ k1, c3 = (uint32_t)x;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

template <class Kind> struct Bias;
template <class Kind> struct Walk;

// Aligned, for g++ 12 else reads its arrays as if they were, and does not place them so.
template <class Kind> struct alignas(64) Tile {
  typedef typename Kind::T T;
  typedef typename Kind::S S;
  typedef Int<S> I;
  static constexpr int VECTORS = LANES / L<S>;

  const Problem& p;
  long b, g;
  int count, vectors;      // lanes, and vectors of lanes, in use
  int m[LANES], h[LANES];  // the query and the head of each lane; lanes beyond `count` repeat the last
  I lo[LANES], hi[LANES];
  long first, last;  // the keys that any lane sees
  Run runs[BLOCK / STEP];
  int found;  // how many runs the block has

  Lines lines;    // of a layout
  long next = 0;  // the first key that was not looked at
  long then = 0;  // the first key of the tile that follows

  Tile(const Problem& p, long b, long g) : p(p), b(b), g(g) {}

  // Tile t of all heads that share the key head; or of the one head h.
  void set(long t) { set_rows(t * LANES, p.R * p.M); }
  void set_of(long head, long t) { set_rows(head % p.R * p.M + t * LANES, (head % p.R + 1) * p.M); }

  // Rows [start, end) of the heads under one another, 64 at most.
  void set_rows(long start, long end) {
    if (start == from && end == to) return;
    from = start, to = end;
    count = (int)std::min<long>(LANES, end - start), vectors = (count + L<S> - 1) / L<S>;
    const long above = start < p.M ? 0 : start / p.M;
    long query = start - above * p.M, head = g * p.R + above;
    if (query + count <= p.M)
      for (int i = 0; i < LANES; i++) m[i] = (int)query + std::min(i, count - 1), h[i] = (int)head;
    else
      for (int i = 0; i < LANES; i++) {
        m[i] = (int)query, h[i] = (int)head;
        if (i + 1 < count && ++query == p.M) query = 0, head++;
      }
    set_bounds();
    if (p.layout.live) Walk<Kind>{*this}.begin();
  }
  void set_bounds() {
    bound(p.lo, lo, 0), bound(p.hi, hi, p.N);
    if (!p.lo.data && !p.hi.data) {
      first = 0, last = p.N;
      std::fill_n(least_lo, VECTORS, 0), std::fill_n(most_lo, VECTORS, 0);
      std::fill_n(least_hi, VECTORS, p.N), std::fill_n(most_hi, VECTORS, p.N);
      return;
    }
    first = p.N, last = 0;
    for (int v = 0; v < VECTORS; v++) {
      const Vec<I> from = load(lo + v * L<S>), to = load(hi + v * L<S>), none{}, all = splat<I>((I)p.N);
      const auto sees = from < to;  // a lane that sees nothing is masked wherever the others are not
      least_lo[v] = -highest<I>(sees ? -from : -all)[0], most_lo[v] = highest<I>(sees ? from : none)[0];
      least_hi[v] = -highest<I>(sees ? -to : none)[0], most_hi[v] = highest<I>(sees ? to : none)[0];
      first = std::min(first, least_lo[v]), last = std::max(last, most_hi[v]);
    }
    first = first / STEP * STEP;
  }

  const Run* begin() const { return runs; }
  const Run* end() const { return runs + found; }

  // Whether any lane of vector v sees any of the keys [n0, n1), and whether every lane sees them all, by their bounds.
  bool sees(int v, long n0, long n1) const { return least_lo[v] < n1 && most_hi[v] > n0; }
  bool covers(int v, long n0, long n1) const { return most_lo[v] <= n0 && least_hi[v] >= n1; }

  // The next block of keys: the next BLOCK of them, or of a layout as many that are live.
  void start() { next = first; }
  bool advance() {
    if (p.layout.live) return Walk<Kind>{*this}.gather();
    if (next >= last) return false;
    find(next, std::min(next + BLOCK, last));
    next += BLOCK;
    return true;
  }

  // Whether no block follows; and of a layout, the key that is read after those of a run, else −1.
  bool ends() const { return next >= last; }
  long after(const Run& r) const {
    if (!p.layout.live) return -1;
    if (const Run* other = &r + 1; other < end()) return other->n + other->at;
    return ends() ? then : lines.live_from(p.layout, next);
  }

  // The runs of keys [n0, n1).
  void find(long n0, long n1) {
    found = 0;
    bool all = true;
    for (int v = 0; v < vectors; v++) all &= covers(v, n0, n1);
    if (all) {
      runs[found++] = {0, (int)(n1 - n0), 0, vectors, false, false, n0};
      return;
    }
    for (long n = n0; n < n1; n += STEP) {
      const long end = std::min(n + STEP, n1);
      Run run{(int)(n - n0), (int)(end - n), VECTORS, 0, false, false, n0};
      for (int v = 0; v < vectors; v++)
        if (least_lo[v] < end && most_hi[v] > n) run.v0 = std::min(run.v0, v), run.v1 = v + 1;
      for (int v = run.v0; v < run.v1; v++) run.masked |= most_lo[v] > n || least_hi[v] < end;
      if (run.v0 >= run.v1) continue;
      if (found && runs[found - 1].alike(run))
        runs[found - 1].rows += run.rows;
      else
        runs[found++] = run;
    }
  }

  // The block as products take it that sum over keys: runs of the same lanes, or else, vector by vector, of all the keys
  // side by side that it sees.
  template <class Take> void sum(const Take& take) const {
    bool alike = true;
    for (const Run& r : *this) alike &= r.v0 == runs[0].v0 && r.v1 == runs[0].v1;
    if (alike) return void(std::for_each(begin(), end(), take));
    for (int v = 0; v < vectors; v++)
      for (const Run* next = begin(); next < end();) {
        Run r = *next++;
        if (!r.has(v)) continue;
        for (; next < end() && next->has(v) && next->n == r.n && next->at == r.at + r.rows; next++)
          r.rows += next->rows;
        r.v0 = v, r.v1 = v + 1;
        take(r);
      }
  }

  const T* row(const Sequence& t, int i) const {
    return i < count ? (const T*)t.data + t.batch[b] + m[i] * t.length + h[i] * t.head : nullptr;
  }

  // [words][LANES]: features by lane.
  void pack_lanes(const Sequence& t, long features, S* to) const {
    const long words = (features + Kind::PAIR - 1) / Kind::PAIR;
    for (int v = 0; v < vectors; v++) {
      const T* rows[L<S>];
      for (int i = 0; i < L<S>; i++) rows[i] = row(t, v * L<S> + i);
      for (long w = 0; w < words; w += L<S>) {
        S* const at = to + w * LANES + v * L<S>;
        const int left = (int)(features - w * Kind::PAIR);
        Vec<S> r[L<S>];
        if (rows[L<S> - 1] && left >= L<S> * Kind::PAIR) {
#pragma GCC unroll 16
          for (int i = 0; i < L<S>; i++) r[i] = Kind::words(rows[i] + w * Kind::PAIR, L<S> * Kind::PAIR);
          transpose<S>(r);
#pragma GCC unroll 16
          for (int i = 0; i < L<S>; i++) store(at + i * LANES, r[i]);
        } else {
          for (int i = 0; i < L<S>; i++) r[i] = rows[i] ? Kind::words(rows[i] + w * Kind::PAIR, left) : Vec<S>{};
          transpose<S>(r);
          for (int i = 0; i < L<S> && w + i < words; i++) store(at + i * LANES, r[i]);
        }
      }
    }
  }

  // [lanes / PAIR][features]: lanes by feature.
  void pack_rows(const Sequence& t, long features, S* to) const {
    const T* rows[LANES];
    for (int i = 0; i < LANES; i++) rows[i] = row(t, i);
    interleave<Kind>(rows, vectors * L<S>, features, to, up(features, L<S>));
  }

  // One number a lane, of [..., H, M].
  Vec<S> numbers(const Rows& t, int v) const {
    Vec<S> x{};
    if (!t.data) return x;
    const S* from = (const S*)t.data + t.batch[b];
    const int *head = h + v * L<S>, *query = m + v * L<S>;
    if (t.length == 1 && query[L<S> - 1] - query[0] == L<S> - 1 && head[0] == head[L<S> - 1])
      return load(from + head[0] * t.head + query[0]);
    for (int i = 0; i < L<S>; i++) x[i] = from[head[i] * t.head + query[i] * t.length];
    return x;
  }
  Vec<S> queries(int v) const {
    Vec<S> x;
    for (int i = 0; i < L<S>; i++) x[i] = (S)m[v * L<S> + i];
    return x;
  }

  // sum over features of a ∘ b, a number a lane, added to `to`.
  void dot(const Sequence& a, const Sequence& c, long features, S* to) const {
    constexpr int WORDS = L<S> * Kind::PAIR;
    if (!a.data || !c.data) return;
    for (int v = 0; v < vectors; v++) {
      Vec<S> r[L<S>];
      for (int i = 0; i < L<S>; i++) {
        const T *x = row(a, v * L<S> + i), *y = row(c, v * L<S> + i);
        Vec<S> sum{};
        const auto add = [&](long f, int some) INLINE_LAMBDA {
          sum = Kind::mac(Kind::words(x + f, some), Kind::words(y + f, some), sum);
        };
        long f = x ? 0 : features;
        for (; f + WORDS <= features; f += WORDS) add(f, WORDS);
        if (f < features) add(f, (int)(features - f));
        r[i] = sum;
      }
      transpose<S>(r);
      Vec<S> sum = load(to + v * L<S>);
      for (int i = 0; i < L<S>; i++) sum += r[i];
      store(to + v * L<S>, sum);
    }
  }

  // What a run's logits become: natural ones, from products of q and k.
  void add(const Operands& x, S scale, S* s, const Run& r, long n0) const { Bias<Kind>{*this}.add(x, scale, s, r, n0); }

  // Bit j of each lane: whether it sees key j of a run of up to STEP keys, by its bounds and by a mask of booleans.
  Vec<I> seen(const Square* mask, const Run& r, int v, long n0) const {
    const Vec<I> start = splat<I>((I)(n0 + r.at)), end = splat<I>(r.rows), none{}, one = splat<I>(1);
    const Vec<I> from = smaller(larger(load(lo + v * L<S>) - start, none), end);
    const Vec<I> to = smaller(larger(load(hi + v * L<S>) - start, from), end);
    Vec<I> bits = (one << to) - (one << from);
    if (r.cut) bits &= Walk<Kind>::shown(*this, r, v);
    return mask ? bits & Bias<Kind>{*this}.flags(*mask, v, n0 + r.at, r.rows) : bits;
  }

  // −∞ where a lane does not see a key.
  void mask(S* s, const Run& run, long n0) const {
    if (run.cut) Walk<Kind>::hide(*this, s, run);
    if (p.lo.data || p.hi.data) mask_bounds(s, run, n0);
  }
  void mask_bounds(S* s, const Run& r, long n0) const {
    for (int v = r.v0; v < r.v1; v++) {
      const Vec<I> from = load(lo + v * L<S>), to = load(hi + v * L<S>);
      for (int n = r.at; n < r.at + r.rows; n++) {
        const Vec<I> key = splat<I>((I)(n0 + n));
        S* at = s + n * LANES + v * L<S>;
        store(at, (key >= from) & (key < to) ? load(at) : splat(-infinity<S>));
      }
    }
  }

  // 1 where dropout keeps a weight, 0 where it does not.
  void keep(S* to, const Run& r, long n0) const {
    const int64_t* key = p.key + p.key_batch[b];
    for (int n = r.at; n < r.at + r.rows; n += 8) {
      uint32_t words[4][LANES];
      for (int i = r.v0 * L<S>; i < r.v1 * L<S>; i++) {
        uint32_t drawn[4];
        philox(key, (n0 + n) / 8, m[i], h[i], drawn);
        for (int j = 0; j < 4; j++) words[j][i] = drawn[j];
      }
      for (int j = 0; j < 8 && n + j < r.at + r.rows; j++)
        for (int i = r.v0 * L<S>; i < r.v1 * L<S>; i++)
          to[(n + j) * LANES + i] = (words[j / 2][i] >> j % 2 * 16 & 0xffff) >= p.threshold ? (S)1 : (S)0;
    }
  }

  // [features][LANES] to the rows of a result [B, M, H, features], each lane times its factor.
  void write(const S* from, long features, const S* factor, void* result) const {
    constexpr int WORDS = L<S> * Kind::PAIR;
    const bool far = p.far(p.M * p.H * features);
    Vec<S> broken{};
    for (int v = 0; v < vectors; v++) {
      const Vec<S> times = load(factor + v * L<S>);
      T* rows[L<S>];
      for (int i = 0; i < L<S>; i++)
        rows[i] = (T*)result + ((b * p.M + m[v * L<S> + i]) * p.H + h[v * L<S> + i]) * features;
      const int lanes = std::min(L<S>, count - v * L<S>);
      for (long f = 0; f < features; f += WORDS) {
        Vec<S> r[L<S>];
        const auto fill = [&]<bool whole>(std::bool_constant<whole>) INLINE_LAMBDA {
          const auto number = [&](int i) INLINE_LAMBDA {
            const Vec<S> x = whole || f + i < features ? load(from + (f + i) * LANES + v * L<S>) * times : Vec<S>{};
            broken += x * 0;
            return x;
          };
#pragma GCC unroll 16
          for (int i = 0; i < L<S>; i++)
            r[i] = Kind::word([&](int j) INLINE_LAMBDA { return number(i * Kind::PAIR + j); });
        };
        if (f + WORDS <= features)
          fill(std::true_type{});
        else
          fill(std::false_type{});
        transpose<S>(r);
        if (f + WORDS <= features && lanes == L<S>)
#pragma GCC unroll 16
          for (int i = 0; i < L<S>; i++) Kind::write(r[i], rows[i] + f, far);
        else
          for (int i = 0; i < lanes; i++) {
            T row[WORDS];
            Kind::write(r[i], row);
            std::memcpy(rows[i] + f, row, std::min<long>(features - f, WORDS) * sizeof(T));
          }
      }
    }
    if (total<S>(broken) != 0) *p.broken = true;
  }
  // One number a lane to a result [B, H, M].
  void write(const S* from, void* result) const {
    for (int i = 0; i < count; i++) ((S*)result)[(b * p.H + h[i]) * p.M + m[i]] = from[i];
  }
  // A run [key][lane] to its place in a result [slices, M, N], as queries by key; or added to what is there. `far`: the
  // result is larger than the caches.
  template <bool add, class D> void lay(const S* from, const Run& r, long n0, D* result, bool far) const {
    constexpr int some = 64 / sizeof(D);  // keys in a line of memory
    for (int v = r.v0; v < r.v1; v++) {
      D* rows[L<S>];
      for (int i = 0; i < L<S>; i++)
        rows[i] = result + (p.slice[b * p.H + h[v * L<S> + i]] * p.M + m[v * L<S> + i]) * p.N + n0 + r.at;
      for (int n = 0; n < r.rows; n += some) {
        D lines[L<S>][some];
        for (int k = 0; k < some; k += L<S>) {
          Vec<S> x[L<S>];
          for (int j = 0; j < L<S>; j++)
            x[j] = n + k + j < r.rows ? load(from + (r.at + n + k + j) * LANES + v * L<S>) : Vec<S>{};
          transpose<S>(x);
          for (int i = 0; i < L<S>; i++) narrow(x[i], lines[i] + k);
        }
        const bool whole = r.rows - n >= some;
        for (int i = 0; i < L<S> && v * L<S> + i < count; i++) {
          D* const to = rows[i] + n;
          if constexpr (add) {
            __builtin_prefetch(to + BLOCK / 2, 1);
            for (int k = 0; k < some && k < r.rows - n; k += L<S>) {
              const int left = r.rows - n - k;
              narrow(widen(to + k, left) + widen(lines[i] + k, left), to + k, left);
            }
          } else if (far && whole)
            for (int k = 0; k < some; k += sizeof(Vec<S>) / sizeof(D)) stream((S*)(to + k), load((S*)(lines[i] + k)));
          else
            std::memcpy(to, lines[i], std::min(some, r.rows - n) * sizeof(D));
        }
      }
    }
  }

  bool finite(const S* x) const {
    S sum = 0;
    for (int i = 0; i < count; i++) sum += x[i] - x[i];
    return sum == 0;
  }

 private:
  // A bound of each lane, within the keys.
  void bound(const Bound& t, I* to, long otherwise) const {
    if (!t.data) return void(std::fill_n(to, LANES, (I)otherwise));
    const int64_t *from = t.data + t.batch[b], N = p.N;
    if (t.query == 1 && m[count - 1] == m[0] + count - 1) {
      from += m[0];
      for (int i = 0; i < count; i++) to[i] = (I)std::clamp<int64_t>(from[i], 0, N);
    } else {
      for (int i = 0; i < count; i++) to[i] = (I)std::clamp<int64_t>(from[m[i] * t.query], 0, N);
    }
    for (int i = count; i < LANES; i++) to[i] = to[count - 1];
  }

  long from = 0, to = 0;  // the rows in the lanes
  long least_lo[VECTORS], most_lo[VECTORS], least_hi[VECTORS], most_hi[VECTORS];
};

}  // namespace
