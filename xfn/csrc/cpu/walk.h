// How a tile walks over a layout: the live tiles of keys that any of its lanes has, gathered into blocks.
#pragma once

namespace {

template <class Kind> struct Walk {
  typedef typename Kind::S S;
  typedef Int<S> I;
  static constexpr int VECTORS = LANES / L<S>;
  Tile<Kind>& tile;

  // The keys that any lane sees begin and end with a live tile.
  void begin() {
    const Layout& y = tile.p.layout;
    Lines& lines = tile.lines;
    lines.set(y, tile.b, tile.m, tile.h);
    const long some = lines.seek(tile.first >> y.shift, y.columns);
    long end = (tile.last + y.size - 1) >> y.shift;
    while (end > some && !lines.any(end - 1)) end--;
    if (some >= end)
      tile.first = tile.p.N, tile.last = 0;
    else
      tile.first = std::max(tile.first, some * y.size), tile.last = std::min(tile.last, end * y.size);
  }

  // Runs of up to BLOCK live keys from `next` on. Vectors that are live apart from one another have runs of their own.
  bool gather() {
    const Layout& y = tile.p.layout;
    int used = 0;
    tile.found = 0;
    while (tile.next < tile.last) {
      const long column = tile.lines.seek(tile.next >> y.shift, y.columns), start = column * y.size;
      const long end = std::min(start + y.size, tile.last);
      tile.next = std::max(tile.next, start);
      bool live[VECTORS], full[VECTORS];
      for (int v = 0; v < tile.vectors; v++) tile.lines.look(v * L<S>, (v + 1) * L<S>, column, live[v], full[v]);
      bool whole = end - tile.next <= BLOCK / 2;  // for two runs, or it is cut by bounds
      for (int v = 0; v < tile.vectors; v++) whole &= tile.covers(v, tile.next, end);
      const long step = whole ? y.size : std::min<long>(STEP, y.size);
      for (; tile.next < end; tile.next = std::min(tile.next + step, end))
        if (!place(std::min(tile.next + step, end), live, full, used)) return true;
    }
    return tile.found > 0;
  }

  // Bit j of each lane: whether a layout shows it key j of a run of up to STEP keys.
  static Vec<I> shown(const Tile<Kind>& tile, const Run& r, int v) {
    const Layout& y = tile.p.layout;
    const long n = r.n + r.at;
    Vec<I> bits;
    for (int i = v * L<S>; i < (v + 1) * L<S>; i++) {
      uint32_t seen = tile.lines.bits(y, tile.b, i, tile.m[i], n);
      if (r.rows > y.size) seen = (seen & 0xff) | tile.lines.bits(y, tile.b, i, tile.m[i], n + y.size) << 8;
      bits[i - v * L<S>] = (I)(seen & 0xffff);
    }
    return bits;
  }
  // −∞ where it shows none.
  static void hide(const Tile<Kind>& tile, S* s, const Run& run) {
    for (int at = run.at; at < run.at + run.rows; at += STEP) {
      const Run r = run.part(at, STEP);
      for (int v = r.v0; v < r.v1; v++) {
        const Vec<I> bits = shown(tile, r, v);
        S* to = s + at * LANES + v * L<S>;
        for (int j = 0; j < r.rows; j++, to += LANES)
          store(to, (bits & (I)(1 << j)) != 0 ? load(to) : splat(-infinity<S>));
      }
    }
  }

 private:
  // Keys [next, till) of a tile that is live, and full, in these vectors; false where the block has no place for them.
  bool place(long till, const bool* live, const bool* full, int& used) {
    Run some[2];
    int count = 0;
    for (int v = 0; v < tile.vectors; v++) {
      if (!live[v] || !tile.sees(v, tile.next, till)) continue;
      const bool masked = !full[v] || !tile.covers(v, tile.next, till);
      if (count == 0 || (count == 1 && some[0].v1 < v)) {
        some[count++] = {0, (int)(till - tile.next), v, v + 1, masked, !full[v]};
      } else {
        Run& r = some[count - 1];
        const bool gap = r.v1 < v;
        r.masked |= masked || gap, r.cut |= !full[v] || gap, r.v1 = v + 1;
      }
    }
    const int held = tile.found, rows = held ? tile.runs[held - 1].rows : 0;
    for (int i = 0; i < count; i++) {
      Run& r = some[i];
      r.at = used, r.n = tile.next - used;
      const bool more = tile.found && tile.runs[tile.found - 1].alike(r);
      if (!more) r.at = (int)up(used, STEP), r.n = tile.next - r.at;
      if (r.at + r.rows > BLOCK) {
        tile.found = held;
        if (held) tile.runs[held - 1].rows = rows;
        return false;
      }
      if (more)
        tile.runs[tile.found - 1].rows += r.rows;
      else
        tile.runs[tile.found++] = r;
      used = r.at + r.rows;
    }
    return true;
  }
};

}  // namespace
