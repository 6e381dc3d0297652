// The instructions that CUDA C++ has no name for. tests/emulation replaces this file by their definitions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace iiae::cuda {

// The block's dynamic shared memory.
__device__ inline std::byte* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return reinterpret_cast<std::byte*>(memory);
}

// sum += A B for A (16, 32) and B (32, 8) of int8 on the tensor cores. Lane l has, with g = l / 4 and t = l % 4, in bytes
//   a[0], a[1]  A[g][4t ..], A[g + 8][4t ..];  a[2], a[3]  the same at columns 16 + 4t
//   b[0], b[1]  B[4t ..][g], B[16 + 4t ..][g]
//   sum         [g][2t], [g][2t + 1], [g + 8][2t], [g + 8][2t + 1]
__device__ inline void multiply_add(std::int32_t (&sum)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Starts to copy 16 bytes from global to shared memory, past the first-level cache; both are aligned to 16 bytes.
__device__ inline void copy_async(void* shared, const void* global) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

// Closes a group of copies that this thread started since the last one.
__device__ inline void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kOpen` of this thread's groups are under way.
template <int kOpen>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

}  // namespace iiae::cuda
