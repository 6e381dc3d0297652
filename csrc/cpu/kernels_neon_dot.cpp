// NEON with the dot product instructions (ARMv8.2 DotProd).
#include "cpu/isa.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

namespace iiae::neon_dot {

#if defined(__clang__)
IIAE_TARGET_BEGIN("dotprod")
#else
IIAE_TARGET_BEGIN("arch=armv8.2-a+dotprod")  // as in GCC's arm_neon.h, which refuses dotprod on top of an older one
#endif
namespace {

#include "cpu/kernels_neon.inl"

struct Ops : Base {
  using Rows8 = Int;
  static Rows8 prepare8(Int rows) { return rows; }
  static Int multiply_add8(Int sum, Rows8 rows, const std::int32_t* query) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(rows), vreinterpretq_s8_s32(set(*query)));
  }
};

#include "cpu/kernels.inl"

}  // namespace
IIAE_TARGET_END

const Kernels kKernels = make_kernels("neon_dot", true);

}  // namespace iiae::neon_dot
#endif
