// The kernel tables of every instruction set.
#pragma once

#include "cpu/kernels.h"
#include "target.h"

namespace iiae {

namespace scalar {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512_vnni {
extern const Kernels kKernels;
}
#endif
#if defined(__aarch64__)
namespace neon {
extern const Kernels kKernels;
}
namespace neon_dot {
extern const Kernels kKernels;
}
#endif

}  // namespace iiae
