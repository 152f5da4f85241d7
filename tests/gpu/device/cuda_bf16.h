// bfloat16, as much as the kernels use of it.
#pragma once
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t word = (uint32_t)x.bits << 16;
  float found;
  std::memcpy(&found, &word, sizeof found);
  return found;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t word;
  std::memcpy(&word, &x, sizeof word);
  if (x != x) return {0x7fff};
  return {(uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16)};  // to nearest, ties to even
}
