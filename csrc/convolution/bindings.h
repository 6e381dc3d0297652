// The Python module's part for convolutions.
#pragma once

#include <pybind11/pybind11.h>

namespace iiae::convolution {

void register_functions(pybind11::module_& module);

}  // namespace iiae::convolution
