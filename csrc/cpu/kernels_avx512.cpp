// AVX-512 F and BW.
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

namespace iiae::avx512 {

IIAE_TARGET_BEGIN("avx512f,avx512bw,avx2,fma")
namespace {

#include "cpu/kernels_avx512.inl"

struct Ops : Base {
  // maddubs takes one unsigned operand: |r| and the query with r's signs, whose products cannot saturate below 2 * 127 * 127.
  struct Rows8 {
    Int magnitudes;
    __mmask64 negative;
  };
  static constexpr bool kBias8 = false;

  static Int multiply_add16(Int sum, Int rows, const std::int32_t* query) {
    return add(sum, _mm512_madd_epi16(rows, set(*query)));
  }
  static Rows8 prepare8(Int rows) { return {_mm512_abs_epi8(rows), _mm512_movepi8_mask(rows)}; }
  static Int multiply_add8(Int sum, Rows8 rows, const std::int32_t* query) {
    const Int values = set(*query);
    const Int signed_query = _mm512_mask_sub_epi8(values, rows.negative, _mm512_setzero_si512(), values);
    const Int pairs = _mm512_maddubs_epi16(rows.magnitudes, signed_query);
    return add(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
};

#include "cpu/kernels.inl"

}  // namespace
IIAE_TARGET_END

const Kernels kKernels = make_kernels("avx512", false);

}  // namespace iiae::avx512
#endif
