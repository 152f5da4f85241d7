// What CUDA sources need of CUDA, on the CPU: a C++ compiler that finds this header instead of NVIDIA's makes of them a
// library that computes what a GPU would, a block at a time; see machine.cpp.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared")))

using std::max, std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
typedef void* cudaStream_t;
typedef int cudaError_t;
constexpr cudaError_t cudaErrorInvalidValue = 1;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the thread that runs

namespace machine {

enum class Meeting : int { none, shuffle, ballot, warp, block };
uint64_t meet(Meeting what, unsigned mask, uint64_t mine, int from);
int lane();
cudaError_t run(const cudaLaunchConfig_t& config, void (*enter)(const void*), const void* launch, size_t size);
const char* text(cudaError_t error);

template <class T> T shuffle(unsigned mask, T value, int from) {
  uint64_t mine = 0;
  std::memcpy(&mine, &value, sizeof value);
  mine = meet(Meeting::shuffle, mask, mine, from);
  std::memcpy(&value, &mine, sizeof value);
  return value;
}

}  // namespace machine

inline void __syncthreads() { machine::meet(machine::Meeting::block, 0, 0, 0); }
inline void __syncwarp(unsigned mask = ~0u) { machine::meet(machine::Meeting::warp, mask, 0, 0); }
inline unsigned __ballot_sync(unsigned mask, bool value) {
  return (unsigned)machine::meet(machine::Meeting::ballot, mask, value, 0);
}
template <class T> T __shfl_sync(unsigned mask, T value, int lane) { return machine::shuffle(mask, value, lane & 31); }
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return machine::shuffle(mask, value, machine::lane() ^ bits);
}

template <class Argument>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Argument), const Argument& argument) {
  struct Launch {
    void (*kernel)(Argument);
    Argument argument;
  };
  const Launch launch{kernel, argument};
  const auto enter = [](const void* launch) {
    static_cast<const Launch*>(launch)->kernel(static_cast<const Launch*>(launch)->argument);
  };
  return machine::run(*config, enter, &launch, sizeof launch);
}
inline const char* cudaGetErrorString(cudaError_t error) { return machine::text(error); }
