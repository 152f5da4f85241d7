// What a boolean mask has, for attention that looks whether it pays to walk less than all: its entries and its live tiles
// are counted first, in one pass, and then the tables of one or the other are filled.
#include <array>
#include <bit>
#include <utility>

#include "tensors.h"

namespace {

Tensor int32(const Shape& shape) { return make(shape, ScalarType::Int); }
struct Mask {  // [P, M, N], whose keys are contiguous
  const char* data;
  int64_t P, M, N, pattern, query;
  explicit Mask(const Tensor& t)
      : data((const char*)t.const_data_ptr()),
        P(t.size(0)),
        M(t.size(1)),
        N(t.size(2)),
        pattern(t.stride(0)),
        query(t.stride(1)) {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Bool && (t.stride(2) == 1 || N <= 1), "a mask is bool, by rows");
  }
  const char* row(int64_t p, int64_t m) const { return data + p * pattern + m * query; }
};
uint64_t eight(const char* at, int64_t left) {  // of which those beyond the end are 0
  uint64_t word = 0;
  if (left >= 8)
    std::memcpy(&word, at, 8);
  else
    std::memcpy(&word, at, left);
  return word;
}

// A band of rows, as many as the largest tiles have: how many are true in each row, and in each of the smallest tiles;
// and, added to `found`, how many in all, and how many tiles of each size are live.
constexpr int64_t SMALL = 8, SIZES = 4, BAND = SMALL << (SIZES - 1);
typedef std::array<int64_t, 1 + SIZES> Found;

Found band(const Mask& mask, int64_t p, int64_t first, int32_t* rows, uint8_t* tiles) {
  const int64_t last = std::min(first + BAND, mask.M), N = mask.N, whole = N / SMALL, J = (N + SMALL - 1) / SMALL,
                room = (J + SMALL - 1) / SMALL * SMALL;
  Found found{};
  std::vector<uint64_t> sums(J);
  std::vector<uint8_t> all(BAND / SMALL * room);  // tiles that are live, of one size after another
  for (int64_t m = first; m < last; m++) {
    const char* row = mask.row(p, m);
    int64_t total = 0, j = 0;
    while (j < whole) {  // 255 words at most, for each byte counts to 255
      const int64_t end = std::min(whole, j + 255);
      uint64_t sum = 0;
      for (; j < end; j++) {
        uint64_t word;
        std::memcpy(&word, row + j * SMALL, sizeof word);
        sum += word, sums[j] += word;
      }
      constexpr uint64_t even = 0x00ff00ff00ff00ff;
      total += (int64_t)(((sum & even) + (sum >> 8 & even)) * 0x0001000100010001 >> 48);
    }
    if (j < J) {
      const uint64_t word = eight(row + j * SMALL, N - j * SMALL);
      total += std::popcount(word), sums[j] += word;
    }
    rows[m] = (int32_t)total, found[0] += total;
    if ((m + 1) % SMALL && m + 1 < last) continue;
    uint8_t *to = tiles + m / SMALL * J, *seen = all.data() + (m - first) / SMALL * room;
    for (j = 0; j < J; j++) to[j] = seen[j] = (uint8_t)(std::exchange(sums[j], 0) * 0x0101010101010101 >> 56);
  }
  for (int64_t size = 0, high = BAND / SMALL, wide = room; size < SIZES; size++, high /= 2, wide /= 2) {
    for (int64_t at = 0; at < high * wide; at++) found[1 + size] += all[at] != 0;
    for (int64_t i = 0; i < high / 2; i++)
      for (int64_t j = 0; j < wide / 2; j++) {
        const uint8_t *above = all.data() + 2 * i * wide + 2 * j, *below = above + wide;
        all[i * (wide / 2) + j] = above[0] | above[1] | below[0] | below[1];
      }
  }
  return found;
}

// Of a mask [P, M, N] whose keys are contiguous: how many are true in this row and the ones before it, [P, M]; in each
// tile of 8 by 8, [P, I, J]; and in all, followed by how many tiles of 8, 16, 32 and 64 are live.
std::tuple<Tensor, Tensor, Tensor> count(const Tensor& given) {
  const Mask mask(given);
  const int64_t P = mask.P, M = mask.M, N = mask.N, I = (M + SMALL - 1) / SMALL, J = (N + SMALL - 1) / SMALL,
                bands = (M + BAND - 1) / BAND;
  STD_TORCH_CHECK(M * N <= INT32_MAX, "a pattern of so many coefficients has no room in its tables");
  Tensor ends = int32({P, M}), tiles = make({P, I, J}, ScalarType::Byte), totals = make({1 + SIZES}, ScalarType::Long);
  int32_t* const rows = (int32_t*)ends.mutable_data_ptr();
  uint8_t* const counts = (uint8_t*)tiles.mutable_data_ptr();
  std::vector<Found> found(P * bands);
  ts::parallel_for(0, P * bands, 8, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; task++) {
      const int64_t p = task / bands;
      found[task] = band(mask, p, task % bands * BAND, rows + p * M, counts + p * I * J);
    }
  });
  int64_t* const to = (int64_t*)totals.mutable_data_ptr();
  std::fill_n(to, 1 + SIZES, 0);
  for (const Found& some : found)
    for (int64_t i = 0; i < 1 + SIZES; i++) to[i] += some[i];
  for (int64_t p = 0; p < P; p++)
    for (int64_t m = 1; m < M; m++) rows[p * M + m] += rows[p * M + m - 1];
  return {ends, tiles, totals};
}

// A layout of tiles `size` by `size`, from the counts: which are live, and where one that is live in part has its words,
// −1 for others, [P, I, J]; and the words, as _core/tables.py has them.
std::tuple<Tensor, Tensor, Tensor> tiles(const Tensor& given, const Tensor& counts, int64_t size) {
  const Mask mask(given);
  const int64_t P = mask.P, M = mask.M, N = mask.N, I = (M + size - 1) / size, J = (N + size - 1) / size,
                some = size / SMALL, down = counts.size(1), along = counts.size(2), width = (size + 31) / 32;
  Tensor blocks = make({P, I, J}, ScalarType::Bool), index = int32({P, I, J});
  bool* const live = (bool*)blocks.mutable_data_ptr();
  int32_t* const at = (int32_t*)index.mutable_data_ptr();
  const uint8_t* const from = (const uint8_t*)counts.const_data_ptr();
  std::vector<int64_t> partial;
  for (int64_t tile = 0; tile < P * I * J; tile++) {
    const int64_t p = tile / (I * J), i = tile / J % I, j = tile % J;
    int64_t sum = 0;
    for (int64_t a = i * some; a < std::min((i + 1) * some, down); a++)
      for (int64_t b = j * some; b < std::min((j + 1) * some, along); b++) sum += from[(p * down + a) * along + b];
    const bool full = sum == std::min(size, M - i * size) * std::min(size, N - j * size);
    live[tile] = sum > 0, at[tile] = -1;
    if (sum > 0 && !full) at[tile] = (int32_t)partial.size(), partial.push_back(tile);
  }
  Tensor words = int32({(int64_t)partial.size(), size, width});
  uint32_t* const bits = (uint32_t*)words.mutable_data_ptr();
  ts::parallel_for(0, (int64_t)partial.size(), 64, [&](int64_t first, int64_t last) {
    for (int64_t q = first; q < last; q++) {
      const int64_t p = partial[q] / (I * J), i = partial[q] / J % I, j = partial[q] % J;
      uint32_t* to = bits + q * size * width;
      std::memset(to, 0, size * width * sizeof *to);
      for (int64_t m = i * size; m < std::min((i + 1) * size, M); m++, to += width)
        for (int64_t n = j * size; n < std::min((j + 1) * size, N); n += 8) {
          const uint64_t found = eight(mask.row(p, m) + n, N - n) * 0x0102040810204080 >> 56;
          to[(n - j * size) / 32] |= (uint32_t)found << (n - j * size) % 32;
        }
    }
  });
  return {blocks, index, words};
}

// columns [P, Z], and where `both` is asked for column_ends [P, N] and rows [P, Z].
std::tuple<Tensor, Tensor, Tensor> fill(const Tensor& given, const Tensor& row_ends, int64_t Z, bool both) {
  const Mask mask(given);
  const int64_t P = mask.P, M = mask.M, N = mask.N;
  Tensor columns = int32({P, Z}), column_ends = int32({both ? P : 0, N}), rows = int32({both ? P : 0, Z});
  const int32_t* ends = (const int32_t*)row_ends.const_data_ptr();
  int32_t *to = (int32_t*)columns.mutable_data_ptr(), *starts = (int32_t*)column_ends.mutable_data_ptr(),
          *queries = (int32_t*)rows.mutable_data_ptr();
  ts::parallel_for(0, P, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; p++) {
      int32_t* at = to + p * Z;
      for (int64_t m = 0; m < M; m++) {
        const char* row = mask.row(p, m);
        for (int64_t n = 0; n < N; n += 8)
          for (uint64_t word = eight(row + n, N - n); word; word &= word - 1)
            *at++ = (int32_t)(n + std::countr_zero(word) / 8);
      }
      const int32_t* const end = at;
      if (both) {
        // Every column's end serves as its cursor, which begins at its start.
        int32_t* cursor = starts + p * N;
        std::memset(cursor, 0, N * sizeof *cursor);
        for (const int32_t* e = to + p * Z; e < end; e++) cursor[*e]++;
        int32_t sum = 0;
        for (int64_t n = 0; n < N; n++) sum += std::exchange(cursor[n], sum);
        const int32_t* e = to + p * Z;
        for (int64_t m = 0, stop; m < M; m++)
          for (stop = ends[p * M + m]; e < to + p * Z + stop; e++) queries[p * Z + cursor[*e]++] = (int32_t)m;
      }
      std::memset(at, 0, (to + (p + 1) * Z - at) * sizeof *at);
      if (both) std::memset(queries + p * Z + (end - (to + p * Z)), 0, (to + (p + 1) * Z - end) * sizeof *at);
    }
  });
  return {columns, column_ends, rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(xfn_cpu, m) {
  m.def("mask_count(Tensor mask) -> (Tensor, Tensor, Tensor)");
  m.def("mask_tiles(Tensor mask, Tensor counts, int size) -> (Tensor, Tensor, Tensor)");
  m.def("mask_fill(Tensor mask, Tensor row_ends, int room, bool both) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(xfn_cpu, CPU, m) {
  m.impl("mask_count", TORCH_BOX(&count));
  m.impl("mask_tiles", TORCH_BOX(&tiles));
  m.impl("mask_fill", TORCH_BOX(&fill));
}
