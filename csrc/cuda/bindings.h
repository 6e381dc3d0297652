#pragma once

#include <pybind11/pybind11.h>

namespace iiae::cuda {

// Adds the functions of this engine to a Python module.
void register_functions(pybind11::module_& m);

}  // namespace iiae::cuda
