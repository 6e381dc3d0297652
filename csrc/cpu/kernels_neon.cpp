// NEON, which every 64-bit ARM processor has.
#include "cpu/isa.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

namespace iiae::neon {

namespace {

#include "cpu/kernels_neon.inl"

struct Ops : Base {
  using Rows8 = Int;
  static Rows8 prepare8(Int rows) { return rows; }
  static Int multiply_add8(Int sum, Rows8 rows, const std::int32_t* query) {
    const int8x16_t r = vreinterpretq_s8_s32(rows);
    const int8x16_t q = vreinterpretq_s8_s32(set(*query));
    const int16x8_t low = vmull_s8(vget_low_s8(r), vget_low_s8(q));
    const int16x8_t high = vmull_high_s8(r, q);
    // Pairs of products fit int16 (2 * 127 * 127), so one pairwise addition in int16 and one into int32 give the fours.
    return vpadalq_s16(sum, vpaddq_s16(low, high));
  }
};

#include "cpu/kernels.inl"

}  // namespace

const Kernels kKernels = make_kernels("neon", false);

}  // namespace iiae::neon
#endif
