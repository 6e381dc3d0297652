// The Python module's part for BatchNorm.
#pragma once

#include <pybind11/pybind11.h>

namespace iiae::batch_norm {

void register_functions(pybind11::module_& module);

}  // namespace iiae::batch_norm
