// The Python module's part for reconstruction losses.
#pragma once

#include <pybind11/pybind11.h>

namespace iiae::reconstruction {

void register_functions(pybind11::module_& module);

}  // namespace iiae::reconstruction
