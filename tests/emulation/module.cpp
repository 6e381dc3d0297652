// The CUDA engine's bindings around the emulated kernels.
#include "cuda/bindings.h"

PYBIND11_MODULE(_emulated, m) { iiae::cuda::register_functions(m); }
