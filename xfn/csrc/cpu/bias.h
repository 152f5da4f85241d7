// What a bias adds to the logits of a tile, and what it hides.
#pragma once

namespace {

template <class Kind> struct Bias {
  typedef typename Kind::S S;
  typedef Int<S> I;
  const Tile<Kind>& tile;

  // What a run's logits become: natural ones, from products of q and k.
  void add(const Operands& x, S scale, S* s, const Run& r, long n0) const {
    if (x.slopes.data || x.spoilt.data || !x.dense.data) {
      add_lines(x, scale, s, r, n0);
      scale = 1;
    }
    if (!x.dense.data) return;
    switch (x.dense.dtype) {
      case Dtype::f32:
        return add_square<float>(x.dense, scale, s, r, n0);
      case Dtype::f64:
        return add_square<double>(x.dense, scale, s, r, n0);
      case Dtype::bf16:
        return add_square<bf16>(x.dense, scale, s, r, n0);
      case Dtype::f16:
        return add_square<f16>(x.dense, scale, s, r, n0);
      case Dtype::boolean:
        return hide(x.dense, scale, s, r, n0);
    }
  }

  // Bit j of each lane of vector v: whether a mask is true at key n + j, for `count` of up to STEP keys.
  Vec<I> flags(const Square& t, int v, long n, int count) const {
    const int rows = alike(t, v) ? 1 : L<S>;
    I bits[L<S>];
    for (int i = 0; i < rows; i++) {
      const bool* row = spot<bool>(t, v * L<S> + i) + n * t.key;
      if (t.key == 1 && count == STEP) {
        bits[i] = truths(row);
      } else {
        bool keys[STEP] = {};
        for (int j = 0; j < count; j++) keys[j] = row[j * t.key];
        bits[i] = truths(keys);
      }
    }
    return rows == 1 ? splat<I>(bits[0]) : load(bits);
  }

 private:
  // The scale, the slopes, and the marks of what is not finite.
  void add_lines(const Operands& x, S scale, S* s, const Run& r, long n0) const {
    const S* unsound =
        x.unsound.data ? (const S*)x.unsound.data + x.unsound.batch[tile.b] + tile.g * x.unsound.head : nullptr;
    for (int v = r.v0; v < r.v1; v++) {
      const Vec<S> query = tile.queries(v), slope = tile.numbers(x.slopes, v), spoilt = tile.numbers(x.spoilt, v);
      for (int n = r.at; n < r.at + r.rows; n++) {
        S* at = s + n * LANES + v * L<S>;
        const Vec<S> gap = query - (S)(n0 + n);
        Vec<S> z = load(at) * scale;
        if (x.slopes.data) z -= slope * (gap > 0 ? gap : -gap);
        if (unsound) z += spoilt + unsound[(n0 + n) * x.unsound.length];
        store(at, z);
      }
    }
  }

  template <class D> static INLINE Vec<S> values(const D* d, int count) {
    if constexpr (std::is_same_v<Vec<S>, decltype(widen(d))>) {
      return widen(d, count);
    } else {
      Vec<S> x{};
      for (int i = 0; i < L<S> && i < count; i++) {
        if constexpr (std::is_same_v<D, bf16>)
          x[i] = (S)cast<float>((uint32_t)d[i].bits << 16);
        else
          x[i] = (S)d[i];
      }
      return x;
    }
  }
  // Whether the lanes of vector v share their row of a bias; and where a lane's begins.
  bool alike(const Square& t, int v) const {
    return t.query == 0 && (t.head == 0 || tile.h[v * L<S>] == tile.h[v * L<S> + L<S> - 1]);
  }
  template <class D> const D* spot(const Square& t, int i) const {
    return (const D*)t.data + t.batch[tile.b] + tile.h[i] * t.head + tile.m[i] * t.query;
  }

  // s · scale, −∞ where a mask is false.
  void hide(const Square& t, S scale, S* s, const Run& run, long n0) const {
    for (int at = run.at; at < run.at + run.rows; at += STEP) {
      const Run r = run.part(at, STEP);
      for (int v = r.v0; v < r.v1; v++) {
        const Vec<I> bits = flags(t, v, n0 + r.at, r.rows);
        for (int j = 0; j < r.rows; j++) {
          S* const to = s + (r.at + j) * LANES + v * L<S>;
          store(to, (bits & (I)(1 << j)) != 0 ? load(to) * scale : splat(-infinity<S>));
        }
      }
    }
  }

  // s · scale + t, −∞ where t is, whatever was there.
  template <class D> void add_square(const Square& t, S scale, S* s, const Run& r, long n0) const {
    for (int v = r.v0; v < r.v1; v++) {
      const D* rows[L<S>];
      for (int i = 0; i < L<S>; i++) rows[i] = spot<D>(t, v * L<S> + i) + (n0 + r.at) * t.key;
      for (int n = 0; n < r.rows; n += L<S>) {
        const int count = std::min(L<S>, r.rows - n);
        S* const at = s + (r.at + n) * LANES + v * L<S>;
        D far[L<S>][L<S>];
        const auto keys = [&](int i) -> const D* {
          if (t.key == 1) return rows[i] + n;
          for (int j = 0; j < count; j++) far[i][j] = rows[i][(n + j) * t.key];
          return far[i];
        };
        Vec<S> x[L<S>];
        if (alike(t, v)) {
          const Vec<S> line = values(keys(0), count);
          for (int j = 0; j < L<S>; j++) x[j] = splat<S>(line[j]);
        } else {
          for (int i = 0; i < L<S>; i++) __builtin_prefetch(rows[i] + n + BLOCK / 2), x[i] = values(keys(i), count);
          transpose<S>(x);
        }
        for (int j = 0; j < count; j++)
          store(at + j * LANES, x[j] == -infinity<S> ? x[j] : load(at + j * LANES) * scale + x[j]);
      }
    }
  }
};

}  // namespace
