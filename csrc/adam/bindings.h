// The Python module's part for the optimizer.
#pragma once

#include <pybind11/pybind11.h>

namespace iiae::adam {

void register_functions(pybind11::module_& module);

}  // namespace iiae::adam
