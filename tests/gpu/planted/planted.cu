// Kernels with a mistake each, and each of them without: what the machine must find, and what it must let pass.
#include <cuda_runtime.h>

#include <cstdint>

struct Call {
  const float* from;
  float* to;
  int count;
};

__global__ void beside(Call c) { c.to[threadIdx.x] = c.from[threadIdx.x + (threadIdx.x == 31 ? c.count : 0)]; }

__global__ void behind(Call c) { c.to[threadIdx.x + (threadIdx.x == 31 ? c.count : 0)] = c.from[threadIdx.x]; }

__global__ void onto(Call c) {
  if (c.count) const_cast<float*>(c.from)[threadIdx.x] = 0;
  c.to[threadIdx.x] = 0;
}

// Each block turns 64 numbers around in shared memory; the barrier is forgotten.
__global__ void around(Call c) {
  __shared__ float numbers[64];
  numbers[threadIdx.x] = c.from[threadIdx.x];
  if (!c.count) __syncthreads();
  c.to[blockIdx.x * 64 + threadIdx.x] = numbers[63 - threadIdx.x];
}

// The sum of a warp, by every lane of it, or by one.
__global__ void together(Call c) {
  float sum = c.from[threadIdx.x];
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (c.count || threadIdx.x % 32 == 0) c.to[threadIdx.x / 32] = sum;
}

// Two blocks write the same number, or each its own.
__global__ void twice(Call c) {
  if (threadIdx.x == 0) c.to[c.count ? 0 : blockIdx.x] = 1;
}

// Half a warp does not come to the meeting.
__global__ void apart(Call c) {
  if (!c.count || threadIdx.x % 32 < 16) c.to[threadIdx.x] = __shfl_xor_sync(0xffffffffu, c.from[threadIdx.x], 1);
}

extern "C" __attribute__((visibility("default"))) int planted(int which, const float* from, float* to, int count) {
  void (*const all[])(Call) = {beside, behind, onto, around, together, twice, apart};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(which == 3 || which == 5 ? 2 : 1);
  config.blockDim = dim3(which >= 3 ? 64 : 32);
  const Call call{from, to, count};
  return cudaLaunchKernelEx(&config, all[which], call);
}

extern "C" __attribute__((visibility("default"))) const char* text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
