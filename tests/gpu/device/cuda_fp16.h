// float16, as much as the kernels use of it.
#pragma once

struct __half {
  _Float16 bits;
};
inline float __half2float(__half x) { return (float)x.bits; }
inline __half __float2half_rn(float x) { return {(_Float16)x}; }
