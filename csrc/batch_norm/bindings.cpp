#include "batch_norm/bindings.h"

#include "addresses.h"
#include "batch_norm/batch_norm.h"

namespace iiae::batch_norm {

namespace py = pybind11;

namespace {

Layer layer_of(std::size_t pixels, std::size_t channels, Address weight, Address bias, float slope) {
  return {pixels, channels, pointer<const float>(weight), pointer<const float>(bias), slope};
}

}  // namespace

void register_functions(py::module_& m) {
  m.def("forward", [](std::size_t pixels, std::size_t channels, Address x, Address weight, Address bias, Address mean,
                      Address inverse_deviation, Address running_mean, Address running_variance, float momentum, float epsilon,
                      float slope, Address out, Address parallel, unsigned threads) {
    const py::gil_scoped_release release;
    const Statistics statistics{pointer<float>(mean),
                                pointer<float>(inverse_deviation),
                                pointer<float>(running_mean),
                                pointer<float>(running_variance),
                                momentum,
                                epsilon};
    forward(layer_of(pixels, channels, weight, bias, slope), pointer<const Bf16>(x), statistics, pointer<Bf16>(out),
            team_of(parallel, threads));
  });
  m.def("backward", [](std::size_t pixels, std::size_t channels, Address x, Address weight, Address bias, Address mean,
                       Address inverse_deviation, float slope, Address gradient, Address x_gradient, Address weight_gradient,
                       Address bias_gradient, Address parallel, unsigned threads) {
    const py::gil_scoped_release release;
    backward(layer_of(pixels, channels, weight, bias, slope), pointer<const Bf16>(x), pointer<const float>(mean),
             pointer<const float>(inverse_deviation), pointer<const Bf16>(gradient),
             {pointer<Bf16>(x_gradient), pointer<float>(weight_gradient), pointer<float>(bias_gradient)},
             team_of(parallel, threads));
  });
}

}  // namespace iiae::batch_norm
