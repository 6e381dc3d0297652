#include "reconstruction/bindings.h"

#include "addresses.h"
#include "reconstruction/reconstruction.h"

namespace iiae::reconstruction {

namespace py = pybind11;

void register_functions(py::module_& m) {
  m.def("compute", [](std::size_t samples, std::size_t elements, bool gaussian, bool tanh, float weight, Address prediction,
                      Address target, bool bytes, Address loss, Address gradient, Address parallel, unsigned threads) {
    const py::gil_scoped_release release;
    const Losses losses{samples, elements, gaussian ? Likelihood::kGaussian : Likelihood::kLaplace, tanh, weight};
    const auto compute_with = [&](const auto* targets) {
      compute(losses, pointer<const Bf16>(prediction), targets, pointer<float>(loss), pointer<Bf16>(gradient),
              team_of(parallel, threads));
    };
    if (bytes) {
      compute_with(pointer<const std::uint8_t>(target));
    } else {
      compute_with(pointer<const float>(target));
    }
  });
  m.def("scale",
        [](std::size_t samples, std::size_t elements, Address scales, Address gradient, Address parallel, unsigned threads) {
          const py::gil_scoped_release release;
          scale(samples, elements, pointer<const float>(scales), pointer<Bf16>(gradient), team_of(parallel, threads));
        });
}

}  // namespace iiae::reconstruction
