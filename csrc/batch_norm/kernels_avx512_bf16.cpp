// AVX-512 with conversions to bf16.
#include "batch_norm/kernels.h"
#include "target.h"

#if defined(__x86_64__)
// GCC's own header leaves a register undefined on purpose and warns about it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

namespace iiae::batch_norm::avx512_bf16 {

IIAE_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")
namespace {

struct Ops {
  using Vec = __m512;

  static __mmask16 first(std::size_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  static Vec all(float value) { return _mm512_set1_ps(value); }
  static Vec widened(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
  static __m256i narrowed(Vec v) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)); }

  static Vec load(const float* p, Full) { return _mm512_loadu_ps(p); }
  static Vec load(const float* p, std::size_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static Vec load(const Bf16* p, Full) { return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static Vec load(const Bf16* p, std::size_t n) { return widened(_mm256_maskz_loadu_epi16(first(n), p)); }
  static void store(Vec v, float* p, Full) { _mm512_storeu_ps(p, v); }
  static void store(Vec v, float* p, std::size_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
  static void store(Vec v, Bf16* p, Full) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(v)); }
  static void store(Vec v, Bf16* p, std::size_t n) { _mm256_mask_storeu_epi16(p, first(n), narrowed(v)); }
  static Vec where_positive(Vec x, Vec a, Vec b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), b, a);
  }
};

#include "batch_norm/kernels.inl"

}  // namespace
IIAE_TARGET_END

const Kernels kKernels{&moments, &activate, &gradient_sums, &gradient};

}  // namespace iiae::batch_norm::avx512_bf16
#endif
