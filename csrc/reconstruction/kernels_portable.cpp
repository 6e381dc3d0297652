// The loops for every processor.
#include <cstdint>
#include <type_traits>

#include "reconstruction/kernels.h"
#include "target.h"

namespace iiae::reconstruction::portable {

namespace {

#include "reconstruction/kernels.inl"

}  // namespace

const Kernels kKernels{&sum_losses<float>, &sum_losses<std::uint8_t>, &scale_values};

}  // namespace iiae::reconstruction::portable
