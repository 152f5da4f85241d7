// Of a layout, the rows of tiles that the lanes of one tile of queries are in, and what is live in their columns.
#pragma once

namespace {

struct Lines {
  struct Line {
    const uint8_t* live;
    const int32_t* index;
    bool full(long column) const { return live[column] && !(index && index[column] >= 0); }
  } all[LANES];
  int count = 0, of[LANES];  // lines, and the one that each lane is in

  void set(const Layout& y, long b, const int* m, const int* h) {
    count = 0;
    for (int i = 0; i < LANES; i++) {
      const int row = m[i] >> y.shift;
      if (i == 0 || row != m[i - 1] >> y.shift || (y.head && h[i] != h[i - 1]))
        all[count++] = {y.live + y.batch[b] + h[i] * y.head + row * y.row,
                        y.index ? y.index + y.index_batch[b] + h[i] * y.index_head + row * y.index_row : nullptr};
      of[i] = count - 1;
    }
  }
  bool any(long column) const {
    for (int l = 0; l < count; l++)
      if (all[l].live[column]) return true;
    return false;
  }
  // The first column from `column` on where any line is live; eight are looked at together.
  long seek(long column, long columns) const {
    for (; column + 8 <= columns; column += 8) {
      uint64_t some = 0, eight;
      for (int l = 0; l < count; l++) std::memcpy(&eight, all[l].live + column, 8), some |= eight;
      if (some) break;
    }
    while (column < columns && !any(column)) column++;
    return column;
  }
  // The first live key from n on.
  long live_from(const Layout& y, long n) const { return std::max(n, seek(n >> y.shift, y.columns) << y.shift); }
  // Whether any of these lanes has the column, and whether all have all of it.
  void look(int from, int to, long column, bool& live, bool& full) const {
    live = false, full = true;
    for (int l = of[from]; l <= of[to - 1]; l++) live |= all[l].live[column] != 0, full &= all[l].full(column);
  }
  // Bit j: whether lane i, of query m, has key n + j; of keys in one tile, and among 32 that share a word.
  uint32_t bits(const Layout& y, long b, int i, int m, long n) const {
    const Line& line = all[of[i]];
    const long column = n >> y.shift, mask = y.size - 1, inside = n & mask;
    if (!line.live[column]) return 0;
    if (line.full(column)) return ~0u;
    const long row = line.index[column] * y.size + (m & mask), words = (y.size + 31) / 32;
    return y.words[y.words_batch[b] + row * words + inside / 32] >> inside % 32;
  }
};

}  // namespace
