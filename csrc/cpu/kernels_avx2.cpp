// AVX2 and FMA.
#include "cpu/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

namespace iiae::avx2 {

IIAE_TARGET_BEGIN("avx2,fma")
namespace {

struct Ops {
  using Int = __m256i;
  using Float = __m256;
  // maddubs takes one unsigned operand: |r| and the query with r's signs, whose products cannot saturate below 2 * 127 * 127.
  struct Rows8 {
    Int rows;
    Int magnitudes;
  };
  static constexpr std::size_t kVecs = 2;
  static constexpr std::size_t kTile = 6;  // 12 sums, 2 vectors of rows, a query and a product: all 16 registers
  static constexpr bool kBias8 = false;
  static constexpr std::size_t kDoubles = 4;

  static Int load(const void* p) { return _mm256_loadu_si256(static_cast<const Int*>(p)); }
  static Float loadf(const void* p) { return _mm256_loadu_ps(static_cast<const float*>(p)); }
  static void store(void* p, Int v) { _mm256_storeu_si256(static_cast<Int*>(p), v); }
  static void storef(void* p, Float v) { _mm256_storeu_ps(static_cast<float*>(p), v); }
  static Int set(std::int32_t value) { return _mm256_set1_epi32(value); }
  static Float setf(float value) { return _mm256_set1_ps(value); }
  // Written out because GCC otherwise keeps two copies of every sum in the inner loop and spills half of them.
  static Int add(Int sum, Int products) {
    asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
    return sum;
  }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Int multiply_add16(Int sum, Int rows, const std::int32_t* query) {
    return add(sum, _mm256_madd_epi16(rows, set(*query)));
  }
  static Rows8 prepare8(Int rows) { return {rows, _mm256_abs_epi8(rows)}; }
  static Int multiply_add8(Int sum, Rows8 rows, const std::int32_t* query) {
    const Int pairs = _mm256_maddubs_epi16(rows.magnitudes, _mm256_sign_epi8(set(*query), rows.rows));
    return add(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static Float multiply_add(Float sum, Float a, Float b) { return _mm256_fmadd_ps(a, b, sum); }
  static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float convert(Int v) { return _mm256_cvtepi32_ps(v); }
  static std::uint32_t below(Float a, Float b) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)));
  }
};

#include "cpu/kernels.inl"

}  // namespace
IIAE_TARGET_END

const Kernels kKernels = make_kernels("avx2", false);

}  // namespace iiae::avx2
#endif
