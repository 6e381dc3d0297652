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

// Eight pairs of row i in the lower half, and of row i + 8 in the upper one.
__m512i rounded_rows(const float* rows, std::size_t stride, std::size_t count, std::size_t i, __mmask16 wanted) {
  const auto row = [&](std::size_t r) {
    return r < count ? _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(wanted, rows + r * stride)) : __m256bh{};
  };
  return _mm512_inserti64x4(_mm512_castsi256_si512(reinterpret_cast<__m256i>(row(i))), reinterpret_cast<__m256i>(row(i + 8)),
                            1);
}

void pack_rows(const float* rows, std::size_t stride, std::size_t count, std::size_t pairs, Pair* out, std::size_t distance) {
  const __m512i lower = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
  const __m512i upper = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  for (std::size_t p = 0; p < pairs; p += 8) {
    const std::size_t now = std::min<std::size_t>(pairs - p, 8);
    const auto wanted = static_cast<__mmask16>((1u << 2 * now) - 1);
    // An 8 by 8 transposition in each half: of neighbours, of pairs of them, of fours.
    __m512i a[8], b[8];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < 8; ++i) a[i] = rounded_rows(rows + 2 * p, stride, count, i, wanted);
#pragma GCC unroll 4
    for (std::size_t i = 0; i < 8; i += 2) {
      b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 2
    for (std::size_t i = 0; i < 8; i += 4) {
      a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
      a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
      a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
      a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (std::size_t i = 0; i < 4; ++i) {
      b[i] = _mm512_permutex2var_epi64(a[i], lower, a[i + 4]);
      b[i + 4] = _mm512_permutex2var_epi64(a[i], upper, a[i + 4]);
    }
    for (std::size_t i = 0; i < now; ++i) _mm512_storeu_si512(out + (p + i) * distance, b[i]);
  }
}

}  // namespace
IIAE_TARGET_END

const Kernels kKernels{"avx512_bf16", &multiply, &add_gradient, &pair, &add, &pack, &pack_rows};

}  // namespace iiae::convolution::avx512_bf16
#endif
