// How the logits of a tile move the loss, and how that moves along a tangent. For what hvp and backward share,
//
//     P = exp(s − lse)    Y = D ∘ (v doutᵀ)    δ = dout · out − dlse    dS = P ∘ (Y − δ)
//
// and, along a tangent ẋ, with c = ṡ − l̇se, Ẏ = D ∘ (v ḋoutᵀ + v̇ doutᵀ), δ̇ = ḋout · out + dout · ȯut − ḋlse,
//
//     ḋS = dS ∘ c + P ∘ (Ẏ − δ̇)
//
// all of it as [key][lane]. Rows of out and lse, and their tangents, tell what would need a second pass.
#pragma once

namespace {

template <class S> constexpr S NEVER =
    1e30;  // the lse of lanes without weight: 2ˣ of anything less it is 0, and no NaN

// A query-side tensor of one tile: features by lane and, where asked for, lanes by feature.
template <class Kind> struct Side {
  typedef typename Kind::S S;
  const Sequence* t;
  S *lanes = nullptr, *rows = nullptr;
  long features, stride;
  Side(const Sequence& t, long features, bool by_row, Arena& arena)
      : t(&t), features(features), stride(up(features, L<S>)) {
    if (t.data) lanes = arena.take<S>((features + 1) * LANES);
    if (t.data && by_row) rows = arena.take<S>(LANES / Kind::PAIR * stride);
  }
  explicit operator bool() const { return t->data; }
  void pack(const Tile<Kind>& tile) const {
    if (lanes) tile.pack_lanes(*t, features, lanes);
    if (rows) tile.pack_rows(*t, features, rows);
  }
};

template <class Kind, bool second> struct Slope {
  typedef typename Kind::S S;
  const Problem& p;
  const Side<Kind> q, dout, tq, tdout;
  Weights<Kind> P, Y, dS;  // P: P ∘ D
  Weights<Kind> C, Z;      // P ∘ D ∘ c and ḋS
  S* const kept;
  const bool biased, moves, shifts, turns;
  const S c, scale, grow;
  S delta[LANES], tdelta[LANES], lse2[LANES], mean[LANES], slope[LANES];

  // `full`: for products with queries and keys; else only dS and ḋS are read.
  Slope(const Problem& p, bool full, Arena& arena)
      : p(p),
        q(p.x.q, p.K, full, arena),
        dout(p.dy.out, p.V, full, arena),
        tq(p.u.q, p.K, full, arena),
        tdout(p.tdy.out, p.V, full, arena),
        P(BLOCK, full, false, arena),
        Y(BLOCK, false, false, arena),
        dS(BLOCK, full, full, arena),
        C(second ? BLOCK : 0, full, false, arena),
        Z(second ? BLOCK : 0, full, full, arena),
        kept(p.key ? arena.take<S>(BLOCK * LANES) : nullptr),
        biased(p.x.dense.data || p.x.slopes.data || p.x.spoilt.data || p.scale < TINY),
        moves(second && (p.u.q.data || p.u.k.data || p.u.dense.data || p.u.slopes.data)),
        shifts(p.u.dense.data || p.u.slopes.data),
        turns(second && (p.tdy.out.data || (p.u.v.data && p.dy.out.data))),
        c(biased ? (S)LOG2E : (S)(p.scale * LOG2E)),
        scale((S)p.scale),
        grow((S)(1 / p.keep)) {
    (second ? Z : dS).read = p.dense;
  }

  const Weights<Kind>& slant() const { return second ? Z : dS; }

  void begin(const Tile<Kind>& tile) {
    q.pack(tile), dout.pack(tile), tq.pack(tile), tdout.pack(tile);
    for (int i = 0; i < LANES; i++) delta[i] = tdelta[i] = mean[i] = slope[i] = 0, lse2[i] = NEVER<S>;
    tile.dot(p.dy.out, p.y.out, p.V, delta);
    if (second) tile.dot(p.tdy.out, p.y.out, p.V, tdelta), tile.dot(p.dy.out, p.uy.out, p.V, tdelta);
    for (int u = 0; u < tile.vectors; u++) {
      const long at = u * L<S>;
      store(lse2 + at, tile.numbers(p.y.lse, u) * (S)LOG2E);
      store(delta + at, load(delta + at) - tile.numbers(p.dy.lse, u));
      if (second)
        store(tdelta + at, load(tdelta + at) - tile.numbers(p.tdy.lse, u)), store(mean + at, tile.numbers(p.uy.lse, u));
    }
    for (int i = 0; i < LANES; i++)  // no weight where nothing is seen, and none in lanes that are not in use
      if (i >= tile.count || lse2[i] == -infinity<S>) lse2[i] = NEVER<S>, delta[i] = tdelta[i] = mean[i] = 0;
  }

  void run(const Tile<Kind>& tile, const Run& r, long n, const Keys<Kind>& k, const Keys<Kind>& v, const Keys<Kind>& tk,
           const Keys<Kind>& tv) {
    const long then = tile.after(r);
    const auto product = [&](const Keys<Kind>& a, const Side<Kind>& b, const Weights<Kind>& to, bool add) {
      return xfn::product(r, then, a, b.lanes, to.numbers, add);
    };
    product(k, q, P, false);
    if (biased) tile.add(p.x, scale, P.numbers, r, n);
    if (r.masked) tile.mask(P.numbers, r, n);
    if (kept) tile.keep(kept, r, n);
    product(v, dout, Y, false);
    if (turns) product(tv, dout, Z, product(v, tdout, Z, false));
    if (moves) {
      if (!product(tk, q, C, product(k, tq, C, false)))
        for (int j = r.at; j < r.at + r.rows; j++) std::memset(C.row(j), 0, LANES * sizeof(S));
      if (shifts) tile.add(p.u, scale, C.numbers, r, n);
    }
    const auto compute = [&]<bool plain, bool guarded>(std::bool_constant<plain>, std::bool_constant<guarded>) {
      weigh<plain, guarded>(tile, r, n);
    };
    if (second || kept || p.slopes || p.x.spoilt.data || !dout)
      compute(std::false_type{}, std::true_type{});
    else if (biased || r.masked)
      compute(std::true_type{}, std::true_type{});
    else
      compute(std::true_type{}, std::false_type{});
  }

  // P and dS, from s and Y. `plain`: nothing is dropped, nothing marked, nothing turns. `guarded`: s may be −∞.
  template <bool plain, bool guarded> void weigh(const Tile<Kind>& tile, const Run& r, long n) {
    const bool strict = !plain && p.x.spoilt.data, drops = !plain && kept, bends = !plain && p.slopes;
    for (int u = r.v0; u < r.v1; u++) {
      const long at = u * L<S>;
      const Vec<S> l2 = load(lse2 + at), de = load(delta + at), tde = load(tdelta + at), mu = load(mean + at);
      const Vec<S> query = tile.queries(u);
      Vec<S> bend = load(slope + at);
      struct Row {
        Vec<S> P{}, dS{}, C{}, Z{};
      };
      const auto compute = [&](int j) INLINE_LAMBDA {
        const long o = j * LANES + at;
        const Vec<S> s = load(P.numbers + o);
        Vec<S> e = exp2v<Kind::degree, guarded>(s * c - l2);
        if (strict) e = s == -infinity<S> ? Vec<S>{} : e;
        const Vec<S> keeps = drops ? load(kept + o) * grow : splat<S>(1);
        Vec<S> slant = e * ((plain || dout ? load(Y.numbers + o) * keeps : Vec<S>{}) - de);
        if (strict) slant = s == -infinity<S> ? Vec<S>{} : slant;
        Row row{e * keeps, slant};
        if (second) {
          const Vec<S> turn = moves ? load(C.numbers + o) * (shifts ? (S)1 : scale) - mu : Vec<S>{};
          row.C = row.P * turn;
          row.Z = slant * turn + e * ((turns ? load(Z.numbers + o) * keeps : Vec<S>{}) - tde);
          if (strict) row.Z = s == -infinity<S> ? Vec<S>{} : row.Z, row.C = s == -infinity<S> ? Vec<S>{} : row.C;
        }
        if (bends) {
          const Vec<S> gap = query - (S)(n + j);
          bend -= (second ? row.Z : row.dS) * (gap > 0 ? gap : -gap);
        }
        return row;
      };
      const auto put = [&](int j, const Row& a, const Row& b, bool two) INLINE_LAMBDA {
        P.put(j, at, a.P, b.P, two), dS.put(j, at, a.dS, b.dS, two);
        if (second) C.put(j, at, a.C, b.C, two), Z.put(j, at, a.Z, b.Z, two);
      };
      two_by_two<Row>(r, compute, put);
      if (bends) store(slope + at, bend);
    }
  }
};

}  // namespace
