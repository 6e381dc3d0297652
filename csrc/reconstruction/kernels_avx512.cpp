// The same loops for AVX-512.
#include <cstdint>
#include <type_traits>

#include "reconstruction/kernels.h"
#include "target.h"

#if defined(__x86_64__)

namespace iiae::reconstruction::avx512 {

IIAE_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace {

#include "reconstruction/kernels.inl"

}  // namespace
IIAE_TARGET_END

const Kernels kKernels{&sum_losses<float>, &sum_losses<std::uint8_t>, &scale_values};

}  // namespace iiae::reconstruction::avx512

#endif
