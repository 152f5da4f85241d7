// The one matrix product: C[r][v] (+)= sum over k of A[r, k] · B[k][v], with A broadcast and v in lanes.
//
// A word is a number, or a pair of bfloat16 whose products are summed at once. Rows r and depth k of A have strides of
// their own, so A is read where it lies: keys by feature, values by key, weights by query.
#pragma once

namespace {

template <class Kind, int R, int W, class S = typename Kind::S>
__attribute__((noinline)) void micro(const S* A, long ra, long ka, const S* B, long kb, long depth, S* C, long rc,
                                     bool add) {
  Vec<S> c[R][W];
#pragma GCC unroll 64
  for (int i = 0; i < R * W; i++) c[i / W][i % W] = Vec<S>{};
#pragma GCC unroll 1
  for (long k = 0; k < depth; k++) {
    Vec<S> b[W];
#pragma GCC unroll 64
    for (int v = 0; v < W; v++) b[v] = load(B + v * L<S>);
#pragma GCC unroll 64
    for (int r = 0; r < R; r++) {
      Vec<S> a = splat(A[r * ra]);
      if constexpr (W > 1) KEEP(a);  // in a register: one broadcast for W products
#pragma GCC unroll 64
      for (int v = 0; v < W; v++) c[r][v] = Kind::mac(a, b[v], c[r][v]);
    }
    A += ka;
    B += kb;
  }
  if (add) {  // last, for the products need not wait for what is there
#pragma GCC unroll 64
    for (int i = 0; i < R * W; i++) c[i / W][i % W] += load(C + i / W * rc + i % W * L<S>);
  }
#pragma GCC unroll 64
  for (int i = 0; i < R * W; i++) store(C + i / W * rc + i % W * L<S>, c[i / W][i % W]);
}

// Rows in tiles of nearly equal height, R at most.
template <class Kind, int W, int R, class S = typename Kind::S>
INLINE void column(const S* A, long ra, long ka, const S* B, long kb, long depth, S* C, long rc, long rows, bool add) {
  const long tiles = (rows + R - 1) / R, tall = rows - rows / tiles * tiles;
  for (long t = 0; t < tiles; t++) {
    const long height = rows / tiles + (t < tall);
    [&]<int... I>(std::integer_sequence<int, I...>) {
      (void)((height == I + 1 && (micro<Kind, I + 1, W>(A, ra, ka, B, kb, depth, C, rc, add), true)) || ...);
    }(std::make_integer_sequence<int, R>{});
    A += height * ra;
    C += height * rc;
  }
}

// rows x lanes, lanes a multiple of L.
template <class Kind, class S = typename Kind::S> void gemm(const S* A, long ra, long ka, const S* B, long kb,
                                                            long depth, S* C, long rc, long rows, long lanes,
                                                            bool add) {
  constexpr int l = L<S>;
  if (rows <= 0) return;
  for (; lanes > 0;) {
#if REGISTERS == 32
    if (lanes >= 4 * l) {
      column<Kind, 4, 6>(A, ra, ka, B, kb, depth, C, rc, rows, add), B += 4 * l, C += 4 * l, lanes -= 4 * l;
      continue;
    }
    if (lanes >= 3 * l) {
      column<Kind, 3, 8>(A, ra, ka, B, kb, depth, C, rc, rows, add), B += 3 * l, C += 3 * l, lanes -= 3 * l;
      continue;
    }
    if (lanes >= 2 * l) {
      column<Kind, 2, 8>(A, ra, ka, B, kb, depth, C, rc, rows, add), B += 2 * l, C += 2 * l, lanes -= 2 * l;
      continue;
    }
    column<Kind, 1, 16>(A, ra, ka, B, kb, depth, C, rc, rows, add), B += l, C += l, lanes -= l;
#else
    if (lanes >= 2 * l) {
      column<Kind, 2, 6>(A, ra, ka, B, kb, depth, C, rc, rows, add), B += 2 * l, C += 2 * l, lanes -= 2 * l;
      continue;
    }
    column<Kind, 1, 8>(A, ra, ka, B, kb, depth, C, rc, rows, add), B += l, C += l, lanes -= l;
#endif
  }
}

}  // namespace
