// The tables of a boolean mask, for attention that finds one sparse: counted first, then filled where that pays.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

namespace {

namespace ts = torch::stable;
using torch::headeronly::ScalarType;
using ts::Tensor;

Tensor int32(const Tensor& like, int64_t patterns, int64_t size) {
  return ts::new_empty(like, std::vector<int64_t>{patterns, size}, ScalarType::Int);
}
const char* row_of(const Tensor& mask, int64_t p, int64_t m) {
  return (const char*)mask.const_data_ptr() + p * mask.stride(0) + m * mask.stride(1);
}
uint64_t eight(const char* at, int64_t left) {  // of which those beyond the end are 0
  uint64_t word = 0;
  std::memcpy(&word, at, left < 8 ? left : 8);
  return word;
}

// How many are true in this row of a mask and the ones before it, [P, M], of a mask [P, M, N] whose keys are contiguous.
Tensor count(const Tensor& mask) {
  const int64_t P = mask.size(0), M = mask.size(1), N = mask.size(2);
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool && (mask.stride(2) == 1 || N <= 1), "a mask is bool, by rows");
  STD_TORCH_CHECK(M * N <= INT32_MAX, "a pattern of so many coefficients has no room in its tables");
  Tensor ends = int32(mask, P, M);
  int32_t* to = (int32_t*)ends.mutable_data_ptr();
  ts::parallel_for(0, P, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; p++) {
      int32_t total = 0;
      for (int64_t m = 0; m < M; m++) {
        const char* row = row_of(mask, p, m);
        int64_t n = 0;
        while (n + 8 <= N) {  // 255 words at most, for each byte counts to 255
          const int64_t end = std::min(N - 8, n + 254 * 8);
          uint64_t sums = 0;
          for (; n <= end; n += 8) {
            uint64_t word;
            std::memcpy(&word, row + n, 8);
            sums += word;
          }
          constexpr uint64_t even = 0x00ff00ff00ff00ff;
          total += (int32_t)(((sums & even) + (sums >> 8 & even)) * 0x0001000100010001 >> 48);
        }
        if (n < N) total += std::popcount(eight(row + n, N - n));
        to[p * M + m] = total;
      }
    }
  });
  return ends;
}

// columns [P, Z], and where `both` is asked for column_ends [P, N] and rows [P, Z].
std::tuple<Tensor, Tensor, Tensor> fill(const Tensor& mask, const Tensor& row_ends, int64_t Z, bool both) {
  const int64_t P = mask.size(0), M = mask.size(1), N = mask.size(2);
  Tensor columns = int32(mask, P, Z), column_ends = int32(mask, both ? P : 0, N), rows = int32(mask, both ? P : 0, Z);
  const int32_t* ends = (const int32_t*)row_ends.const_data_ptr();
  int32_t *to = (int32_t*)columns.mutable_data_ptr(), *starts = (int32_t*)column_ends.mutable_data_ptr(),
          *queries = (int32_t*)rows.mutable_data_ptr();
  ts::parallel_for(0, P, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; p++) {
      int32_t* at = to + p * Z;
      for (int64_t m = 0; m < M; m++) {
        const char* row = row_of(mask, p, m);
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
  m.def("mask_count(Tensor mask) -> Tensor");
  m.def("mask_fill(Tensor mask, Tensor row_ends, int room, bool both) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(xfn_cpu, CPU, m) {
  m.impl("mask_count", TORCH_BOX(&count));
  m.impl("mask_fill", TORCH_BOX(&fill));
}
