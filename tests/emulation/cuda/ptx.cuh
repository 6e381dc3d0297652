// Replaces csrc/cuda/ptx.cuh: the same functions by their definitions.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

namespace iiae::cuda {

inline std::byte* dynamic_shared() { return emulation::dynamic_shared(); }

inline void multiply_add(std::int32_t (&sum)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  struct Operands {
    std::int8_t a[4][4];
    std::int8_t b[2][4];
  } own;
  std::memcpy(own.a, a, sizeof own.a);
  std::memcpy(own.b, b, sizeof own.b);
  const Operands* all = emulation::exchange(0xffffffffu, own);
  const unsigned group = threadIdx.x % 32 / 4;
  const unsigned quad = threadIdx.x % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned high = i / 2;  // row group + 8 high
    const unsigned column = 2 * quad + i % 2;
    for (unsigned k = 0; k < 32; ++k) {
      const Operands& row = all[4 * group + k % 16 / 4];
      const Operands& query = all[4 * column + k % 16 / 4];
      sum[i] += row.a[2 * (k / 16) + high][k % 4] * query.b[k / 16][k % 4];
    }
  }
}

inline void copy_async(void* shared, const void* global) { emulation::start_copy(shared, global, 16); }
inline void close_copies() { emulation::close_copies(); }
template <int kOpen>
inline void wait_copies() {
  emulation::wait_copies(kOpen);
}

}  // namespace iiae::cuda
