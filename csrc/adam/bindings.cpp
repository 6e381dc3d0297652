#include "adam/bindings.h"

#include <pybind11/stl.h>

#include <array>

#include "adam/adam.h"
#include "addresses.h"

namespace iiae::adam {

namespace py = pybind11;

void register_functions(py::module_& m) {
  // Of each parameter: the addresses of values, gradient, both moments and step, and how many numbers.
  m.def("update", [](const std::vector<std::array<Address, 6>>& parameters, double lr, double beta1, double beta2,
                     double epsilon, Address parallel, unsigned threads) {
    const py::gil_scoped_release release;
    std::vector<Parameter> found;
    found.reserve(parameters.size());
    for (const auto& [values, gradient, mean, square, step, count] : parameters) {
      found.push_back({pointer<float>(values), pointer<const float>(gradient), pointer<float>(mean), pointer<float>(square),
                       pointer<float>(step), count});
    }
    update(found, {lr, beta1, beta2, epsilon}, team_of(parallel, threads));
  });
}

}  // namespace iiae::adam
