// AVX-512 F, BW and VNNI.
#include "cpu/isa.h"

#if defined(__x86_64__)
// GCC's own header leaves a register undefined on purpose and warns about it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

namespace iiae::avx512_vnni {

IIAE_TARGET_BEGIN("avx512f,avx512bw,avx512vnni,avx2,fma")
namespace {

#include "cpu/kernels_avx512.inl"

struct Ops : Base {
  using Rows8 = Int;
  // vpdpbusd takes the rows unsigned: they are shifted by 128, and 128 times the query's sum is taken off beforehand.
  static constexpr bool kBias8 = true;

  // Written out because GCC otherwise keeps two copies of every sum in the inner loop, and broadcasts the query apart.
  static Int multiply_add16(Int sum, Int rows, const std::int32_t* query) {
    asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(rows), "m"(*query));
    return sum;
  }
  static Rows8 prepare8(Int rows) { return _mm512_xor_si512(rows, _mm512_set1_epi8(static_cast<char>(0x80))); }
  static Int multiply_add8(Int sum, Rows8 rows, const std::int32_t* query) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(rows), "m"(*query));
    return sum;
  }
};

#include "cpu/kernels.inl"

}  // namespace
IIAE_TARGET_END

const Kernels kKernels = make_kernels("avx512_vnni", true);

}  // namespace iiae::avx512_vnni
#endif
