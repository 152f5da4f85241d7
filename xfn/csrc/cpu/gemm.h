// The one matrix product: C[r][v] (+)= sum over k of A[r, k] · B[k][v], with A broadcast and v in lanes.
//
// A word is a number, or a pair of bfloat16 whose products are summed at once. Rows r and depth k of A have strides of
// their own, so A is read where it lies: keys by feature, values by key, weights by query.
#pragma once

namespace {

// A word where it lies: a pair of bfloat16 need not begin where a float would.
template <class S> INLINE S word(const S* p) {
  S x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

// Rows that are read soon and lie too far apart for a prefetcher: each step of a product fetches a line of the next
// 1 << shift of them, where that takes no time.
struct Soon {
  const char* at;
  long step;  // bytes
  int shift;
  long left = 1l << 40;  // rows, and where others follow
  const char* then = nullptr;
  // As many rows as products of `steps` steps have time for.
  static int rows(long bytes, long steps) { return std::bit_width((uint64_t)std::max(1l, steps * 64 / bytes)) - 1; }
  template <class S> static Soon upto(const S* at, long step, int shift, long left, const S* then) {
    return {(const char*)(left > 0 ? at : then), step * (long)sizeof(S), shift, left, (const char*)then};
  }
  INLINE void operator()(long k) const {
    __builtin_prefetch(at + (k & ((1 << shift) - 1)) * step + (k >> shift) * 64, 0, 2);
  }
  INLINE void pass(long rows) {
    at = left > 0 && left <= rows ? then : at + rows * step;
    left -= rows;
  }
};
struct Never {
  INLINE void operator()(long) const {}
  INLINE void pass(long) {}
};

template <class Words, int R, int W, class Next, class S>
INLINE void multiply(Vec<S> (&c)[R][W], const S* A, long ra, long ka, const S* B, long kb, long depth, Next next) {
#pragma GCC unroll 1
  for (long k = 0; k < depth; k++) {
    next(k);
    Vec<S> b[W];
#pragma GCC unroll 64
    for (int v = 0; v < W; v++) b[v] = load(B + v * L<S>);
#pragma GCC unroll 64
    for (int r = 0; r < R; r++) {
      if constexpr (W == 1) {
        c[r][0] = Words::mac(A + r * ra, b[0], c[r][0]);
      } else {
        Vec<S> a = splat(word(A + r * ra));
        KEEP(a);  // in a register: one broadcast for W products
#pragma GCC unroll 64
        for (int v = 0; v < W; v++) c[r][v] = Words::mac(a, b[v], c[r][v]);
      }
    }
    A += ka;
    B += kb;
  }
}

// In registers; what it is added to is read last, for the product need not wait for that.
template <class Words, int R, int W, class Next, class S = typename Words::S>
__attribute__((noinline)) void micro(const S* A, long ra, long ka, const S* B, long kb, long depth, S* C, long rc,
                                     bool add, Next next) {
  Vec<S> c[R][W];
#pragma GCC unroll 64
  for (int i = 0; i < R * W; i++) c[i / W][i % W] = Vec<S>{};
  multiply<Words>(c, A, ra, ka, B, kb, depth, next);
  if (add) {
#pragma GCC unroll 64
    for (int i = 0; i < R * W; i++) c[i / W][i % W] += load(C + i / W * rc + i % W * L<S>);
  }
#pragma GCC unroll 64
  for (int i = 0; i < R * W; i++) store(C + i / W * rc + i % W * L<S>, c[i / W][i % W]);
}

struct Alone {
  INLINE void operator()(long) const {}
};

// Rows in tiles of nearly equal height, R at most; after each, `beside` is told how many steps it took.
template <class Words, int W, int R, class Beside, class Next, class S = typename Words::S>
INLINE void column(const S* A, long ra, long ka, const S* B, long kb, long depth, S* C, long rc, long rows, bool add,
                   const Beside& beside, Next next) {
  constexpr auto HEIGHTS = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array{&micro<Words, I + 1, W, Next>...};
  }(std::make_integer_sequence<int, R>{});
  const long tiles = (rows + R - 1) / R, low = rows / tiles, tall = rows - low * tiles;
  for (long t = 0; t < tiles; t++) {
    const long height = low + (t < tall);
    HEIGHTS[height - 1](A, ra, ka, B, kb, depth, C, rc, add, next);
    beside(height * W * depth);
    next.pass(height);
    A += height * ra;
    C += height * rc;
  }
}

// rows x lanes, lanes a multiple of L.
template <class Words, class Beside = Alone, class Next = Never, class S = typename Words::S>
void gemm(const S* A, long ra, long ka, const S* B, long kb, long depth, S* C, long rc, long rows, long lanes, bool add,
          const Beside& beside = {}, const Next& next = {}) {
  constexpr int l = L<S>, WIDE = REGISTERS == 32 ? 4 : 2;
  if (rows <= 0) return;
  bool first = true;
  const auto columns = [&]<int W, int R>(std::integer_sequence<int, W, R>) {
    const auto with = [&](const auto& next) INLINE_LAMBDA {
      column<Words, W, R>(A, ra, ka, B, kb, depth, C, rc, rows, add, beside, next);
    };
    if constexpr (W == WIDE)
      first ? with(next) : with(Never());
    else
      with(Never());
    first = false, B += W * l, C += W * l, lanes -= W * l;
  };
  while (lanes > 0) {
#if REGISTERS == 32
    if (lanes >= 4 * l)
      columns(std::integer_sequence<int, 4, 6>());
    else if (lanes >= 3 * l)
      columns(std::integer_sequence<int, 3, 8>());
    else if (lanes >= 2 * l)
      columns(std::integer_sequence<int, 2, 8>());
    else
      columns(std::integer_sequence<int, 1, 16>());
#else
    if (lanes >= 2 * l)
      columns(std::integer_sequence<int, 2, 6>());
    else
      columns(std::integer_sequence<int, 1, 8>());
#endif
  }
}

}  // namespace
