// The Python module's part for random numbers.
#pragma once

#include <pybind11/pybind11.h>

namespace iiae::philox {

void register_functions(pybind11::module_& module);

}  // namespace iiae::philox
