// A block of a product of matrices: WIDTH columns of c, some of its rows.
//
// Of b, DEPTH rows at a time are packed into panels of LANES columns, which stay in the second cache while rows of a
// pass by: each six of them stay in the first one for all panels. Where a's rows lie apart they are packed by six, too.
// A number of c is the sum of its products in their order, whatever the blocks.
#pragma once

namespace {

template <class Kind> struct Matmul {
  typedef typename Kind::S S;
  static constexpr long WIDTH = Product::WIDTH, DEPTH = 256, TALL = 6;
  static constexpr long SOME = 16 * TALL, NEXT = 16;  // rows of a that are packed at once, and columns fetched ahead

  const Product& p;
  const long m0, m1, n0, n1;
  const long most, room;  // rows of b at a time, and from one six to the next: no power of two
  S *const panels, *const sixes;

  Matmul(const Product& p, int64_t task, Arena& arena)
      : p(p),
        m0(task / p.across() * p.height),
        m1(std::min(p.M, m0 + p.height)),
        n0(task % p.across() * WIDTH),
        n1(std::min(p.N, n0 + WIDTH)),
        most(std::min(DEPTH, p.K)),
        room(most * TALL + 2 * L<S>),
        panels(arena.take<S>(std::min(WIDTH, up(p.N, LANES)) * most)),
        sixes(p.a_step == 1 ? nullptr : arena.take<S>(SOME / TALL * room)) {}

  void run() const {
    for (long k = 0; k < p.K; k += most) block(k, std::min(most, p.K - k));
    if (!p.K)
      for (long m = m0; m < m1; m++) std::fill_n((S*)p.c + m * p.N + n0, n1 - n0, (S)0);
    if (!p.K && p.line) add(m0, m1);
  }

 private:
  void block(long k, long depth) const {
    for (long n = n0; n < n1; n += LANES) pack(n, std::min<long>(LANES, n1 - n), k, depth);
    for (long m = m0; m < m1; m += SOME) {
      const long end = std::min(m + SOME, m1);
      if (sixes) take(m, end - m, k, depth);
      for (long row = m; row < end; row += TALL) {
        const long rows = std::min(TALL, end - row);
        const S* a = sixes ? sixes + (row - m) / TALL * room : (const S*)p.a + row * p.a_row + k;
        for (long n = n0; n < n1; n += LANES) {
          S* const c = (S*)p.c + row * p.N + n;
          for (long i = 0; i < rows; i++)  // there when their sums are
            for (long v = 0; v < LANES; v += 64 / sizeof(S)) claim(c + i * p.N + v);
          gemm<typename Kind::Words>(a, sixes ? 1 : p.a_row, sixes ? TALL : 1, panel(n), LANES, depth, c, p.N, rows,
                                     std::min<long>(LANES, n1 - n), k > 0);
        }
        if (p.line && k + depth == p.K) add(row, row + rows);
      }
    }
  }
  S* panel(long n) const { return panels + (n - n0) * most; }

  // Columns [n, n + width) of rows [k, k + depth) of b.
  void pack(long n, long width, long k, long depth) const {
    const S* from = (const S*)p.b + k * p.b_step + n * p.b_column;
    S* const to = panel(n);
    if (p.b_column == 1)
      for (long i = 0; i < depth; i++)
        for (long v = 0; v < width; v += L<S>) store(to + i * LANES + v, load(from + i * p.b_step + v));
    else
      for (long v = 0; v < width; v += L<S>)
        for (long i = 0; i < depth; i += L<S>) {
          Vec<S> r[L<S>];
#pragma GCC unroll 16
          for (int j = 0; j < L<S>; j++) r[j] = load(from + (v + j) * p.b_column + i);
          transpose<S>(r);
#pragma GCC unroll 16
          for (int j = 0; j < L<S>; j++) store(to + (i + j) * LANES + v, r[j]);
        }
  }
  // Columns [k, k + depth) of `rows` rows of a from m on, by sixes.
  void take(long m, long rows, long k, long depth) const {
    const S* from = (const S*)p.a + m + k * p.a_step;
    for (long i = 0; i < depth; i++, from += p.a_step) {
      if (i + NEXT < depth)  // each is in a page of its own, where no prefetcher looks
        for (long line = 0; line < rows; line += 64 / sizeof(S)) __builtin_prefetch(from + NEXT * p.a_step + line);
      long row = 0;
      for (; row + TALL <= rows; row += TALL)
        std::memcpy(sixes + row / TALL * room + i * TALL, from + row, TALL * sizeof(S));
      if (row < rows) std::memcpy(sixes + row / TALL * room + i * TALL, from + row, (rows - row) * sizeof(S));
    }
  }
  void add(long first, long last) const {
    const S* const line = (const S*)p.line;
    for (long m = first; m < last; m++) {
      S* const row = (S*)p.c + m * p.N;
      for (long n = n0; n < n1; n += L<S>) store(row + n, load(row + n) + load(line + n));
    }
  }
};

}  // namespace
