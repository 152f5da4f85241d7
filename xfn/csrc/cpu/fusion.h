// Products of queries and keys that become weights 2^(c s − base) in the registers that they are summed in.
#pragma once

namespace {

template <class Words, int degree> struct Fusion {
  typedef typename Words::S S;
  typedef Int<S> I;
  static constexpr int VECTORS = LANES / L<S>, WIDE = REGISTERS == 32 ? 4 : 2;
  const S c;
  Vec<S> base[VECTORS] = {}, part[VECTORS] = {};  // of each vector of lanes; and its sum
  Vec<I> seen[VECTORS] = {};                      // bit j: whether the j-th key of these is seen, where some are hidden

  void begin(int u, Vec<S> top) { base[u] = top * c, part[u] = Vec<S>{}; }

  // Vectors of lanes from u on, in tiles that registers hold. `next`: what is fetched beside, or null.
  void run(bool hidden, int wide, const S* keys, long row, const S* queries, long words, S* to, int u,
           const Soon* next) {
    const auto with = [&]<int W>(std::integral_constant<int, W>) {
      if (wide != W) return;
      if (hidden)
        fuse<true, W>(keys, row, queries, words, to, u, next);
      else
        fuse<false, W>(keys, row, queries, words, to, u, next);
    };
    [&]<int... W>(std::integer_sequence<int, W...>) {
      (with(std::integral_constant<int, W + 1>()), ...);
    }(std::make_integer_sequence<int, WIDE>{});
  }

 private:
  template <bool hides, int W>
  void fuse(const S* keys, long row, const S* queries, long words, S* to, int u, const Soon* next) {
    const auto one = [&]<int R>(std::integral_constant<int, R>, int& j) INLINE_LAMBDA {
      const auto with = [&](auto beside) INLINE_LAMBDA {
        fuse<hides, W, R>(keys + j * row, row, queries, words, to + j / Words::PAIR * LANES, u, j, beside);
      };
      if constexpr (!hides && W == WIDE)
        next ? with(next[j > 0]) : with(Never());
      else
        with(Never());
      j += R;
    };
    const auto tiles = [&]<int... R>() {
      int j = 0;
      (one(std::integral_constant<int, R>(), j), ...);
    };
    if constexpr (W == WIDE && Words::PAIR == 2)
      tiles.template operator()<6, 6, 4>();
    else if constexpr (W == WIDE)
      tiles.template operator()<6, 5, 5>();
    else if constexpr (W == 1 && REGISTERS == 32)
      tiles.template operator()<16>();
    else
      tiles.template operator()<8, 8>();
  }
  template <bool hides, int W, int R, class Next> __attribute__((noinline)) void fuse(const S* keys, long row,
                                                                                      const S* queries, long words,
                                                                                      S* to, int u, int j, Next next) {
    Vec<S> s[R][W] = {};
    multiply<Words>(s, keys, row, 1, queries + u * L<S>, LANES, words, next);
#pragma GCC unroll 4
    for (int v = 0; v < W; v++) {
      const Vec<S> less = base[u + v];
      Vec<I> bits{};
      if (hides) bits = seen[u + v] >> j;
      Vec<S> total = part[u + v];
      const auto weight = [&](int i) INLINE_LAMBDA {
        Vec<S> e = exp2v<degree, false>(s[i][v] * c - less);
        if (hides) e = (bits & (I)(1 << i)) != 0 ? e : Vec<S>{};
        total += e;
        return e;
      };
      S* const at = to + (u + v) * L<S>;
#pragma GCC unroll 16
      for (int i = 0; i + 1 < R; i += 2) {
        const Vec<S> a = weight(i), b = weight(i + 1);
        Words::two(a, b, at + i / Words::PAIR * LANES, LANES);
      }
      if constexpr (R % 2) store(at + (R - 1) * LANES, weight(R - 1));
      part[u + v] = total;
    }
  }
};

}  // namespace
