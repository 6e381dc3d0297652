// AVX-512 with products of bf16.
#include "convolution/isa.h"

#if defined(__x86_64__)
// GCC's own header leaves a register undefined on purpose and warns about it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace iiae::convolution::avx512_bf16 {

IIAE_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")
namespace {

struct Ops {
  using Vec = __m512;
  using Pairs = __m512i;

  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static Pairs load(const Pair* p) { return _mm512_loadu_si512(p); }
  static void store(Vec v, float* p) { _mm512_storeu_ps(p, v); }
  // Lanes first ... first + count - 1.
  static void store(Vec v, Bf16* p, std::size_t first, std::size_t count) {
    const auto mask = static_cast<__mmask16>(((1u << count) - 1) << first);
    _mm256_mask_storeu_epi16(p - first, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
  }

  // Written out because GCC otherwise keeps two copies of every sum in the inner loop.
  template <int Vectors>
  IIAE_INLINE static void multiply_add(Vec (&sums)[Vectors], const Pairs (&weight)[Vectors], const char* pair) {
    if constexpr (Vectors == 1) {
      asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sums[0]) : "v"(weight[0]), "m"(*reinterpret_cast<const Pair*>(pair)));
    } else {
      Pairs all;
      asm("vpbroadcastd %1, %0" : "=v"(all) : "m"(*reinterpret_cast<const Pair*>(pair)));
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) asm("vdpbf16ps %2, %1, %0" : "+v"(sums[v]) : "v"(weight[v]), "v"(all));
    }
  }
};

#include "convolution/kernels.inl"

__m512i rounded(const float* in, std::size_t stride, std::size_t count) {
  if (!in) return _mm512_setzero_si512();
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(stride)));
  const __m512 all =
      stride == 1 ? _mm512_maskz_loadu_ps(mask, in) : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, places, in, 4);
  return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(all)));
}

void pack(const float* first, const float* second, std::size_t stride, std::size_t count, Pair* out) {
  const __m512i high = _mm512_slli_epi32(rounded(second, stride, count), 16);
  _mm512_storeu_si512(out, _mm512_or_si512(rounded(first, stride, count), high));
}

}  // namespace
IIAE_TARGET_END

const Kernels kKernels{"avx512_bf16", &multiply, &add_gradient, &pair, &add, &pack};

}  // namespace iiae::convolution::avx512_bf16
#endif
