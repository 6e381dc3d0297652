// The kernel tables of every instruction set.
#pragma once

#include "convolution/kernels.h"
#include "target.h"

namespace iiae::convolution {

namespace scalar {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx512_bf16 {
extern const Kernels kKernels;
}
#endif

}  // namespace iiae::convolution
