// Replaces CUDA's header, so that a host compiler builds csrc/cuda: a kernel runs block by block on the CPU, every thread of a
// block on a stack of its own. A thread runs until it has to wait for others, so races are not found, but a barrier or a
// shuffle that not all threads reach is (it ends the process), and so is every access outside of an array, by AddressSanitizer.
// Dynamic shared memory is poisoned before each block, and asynchronous copies arrive only when they are waited for.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block runs at a time
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  // CUDA's takes unsigned too; here a count beyond it is an error instead of its remainder.
  dim3(std::size_t x) : x(static_cast<unsigned>(x)) {
    if (x > 0x7fffffffu) std::abort();
  }
  dim3(int x) : x(static_cast<unsigned>(x)) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

// Runs body() once for every thread of every block; false if a GPU would not take such a launch.
bool run(const cudaLaunchConfig_t& config, void (*body)(void*), void* context);

std::byte* dynamic_shared();
void block_barrier();

// Waits until every lane that `mask` names has called, and returns what all 32 gave; it stays until this lane has called twice
// again. At most 32 bytes.
const void* exchange(unsigned mask, const void* own, std::size_t size);

template <class T>
const T* exchange(unsigned mask, const T& own) {
  static_assert(sizeof(T) <= 32);
  return static_cast<const T*>(exchange(mask, &own, sizeof(T)));
}

void start_copy(void* to, const void* from, std::size_t size);
void close_copies();
void wait_copies(int open);

inline unsigned lane() { return threadIdx.x % 32; }

}  // namespace emulation

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  auto body = [&] { kernel(Parameters(arguments)...); };
  const bool ran = emulation::run(*config, [](void* context) { (*static_cast<decltype(body)*>(context))(); }, &body);
  return ran ? cudaSuccess : cudaErrorInvalidValue;
}

inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid value"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 2, cudaSuccess; }
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return bytes <= 99 << 10 ? cudaSuccess : cudaErrorInvalidValue;  // what sm_86, sm_89 and sm_120 have
}

inline void __syncthreads() { emulation::block_barrier(); }
inline void __syncwarp() { emulation::exchange(0xffffffffu, 0); }
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int step) {
  return emulation::exchange(mask, value)[emulation::lane() ^ static_cast<unsigned>(step)];
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned step) {
  const T* all = emulation::exchange(mask, value);
  return emulation::lane() < step ? value : all[emulation::lane() - step];
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const unsigned* all = emulation::exchange(mask, static_cast<unsigned>(predicate));
  unsigned result = 0;
  for (unsigned i = 0; i < 32; ++i) result |= (mask >> i & 1u) ? all[i] << i : 0u;
  return result;
}
inline bool __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __popc(unsigned value) { return std::popcount(value); }

template <class T>
T atomicAdd(T* at, T value) {
  return std::exchange(*at, *at + value);
}
template <class T>
T atomicMax(T* at, T value) {
  return std::exchange(*at, std::max(*at, value));
}
template <class T>
T atomicMin(T* at, T value) {
  return std::exchange(*at, std::min(*at, value));
}

template <class T>
T atomicOr(T* at, T value) {
  return std::exchange(*at, *at | value);
}
inline int __ffs(int value) { return value == 0 ? 0 : std::countr_zero(static_cast<unsigned>(value)) + 1; }

inline double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline float __double2float_ru(double value) {
  const float nearest = static_cast<float>(value);
  return nearest < value ? std::nextafter(nearest, std::numeric_limits<float>::infinity()) : nearest;
}
using std::fabs, std::fmax, std::fmin, std::fmaf, std::ilogb, std::isfinite, std::isinf, std::isnan, std::rint, std::scalbn,
    std::sqrt;
