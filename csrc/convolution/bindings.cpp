#include "convolution/bindings.h"

#include <pybind11/stl.h>

#include <array>

#include "addresses.h"
#include "convolution/convolution.h"

namespace iiae::convolution {

namespace py = pybind11;

namespace {

using Sizes = std::array<std::size_t, 5>;  // batch, height and width of the small map, channels of the small and the large one
using Strides = std::array<std::size_t, 4>;  // of a weight: small channel, large channel, row, column

Shape shape_of(const Sizes& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}; }

template <class Float>
Kernel<Float> kernel_of(Address weight, const Strides& strides) {
  return {pointer<Float>(weight), strides[0], strides[1], strides[2], strides[3]};
}

template <auto Function>
void convolve(const Sizes& sizes, Address map, Address weight, const Strides& strides, Address bias, Address out,
              Address parallel, unsigned threads) {
  const py::gil_scoped_release release;
  Function(shape_of(sizes), pointer<const Bf16>(map), kernel_of<const float>(weight, strides), pointer<const float>(bias),
           pointer<Bf16>(out), team_of(parallel, threads));
}

}  // namespace

void register_functions(py::module_& m) {
  m.def("down", &convolve<&down>);
  m.def("up", &convolve<&up>);
  m.def("weight_gradient", [](const Sizes& sizes, Address small, Address large, Address out, const Strides& strides,
                              Address parallel, unsigned threads) {
    const py::gil_scoped_release release;
    weight_gradient(shape_of(sizes), pointer<const Bf16>(small), pointer<const Bf16>(large), kernel_of<float>(out, strides),
                    team_of(parallel, threads));
  });
  m.def("channel_sums",
        [](Address map, std::size_t pixels, std::size_t channels, Address out, Address parallel, unsigned threads) {
          const py::gil_scoped_release release;
          channel_sums(pointer<const Bf16>(map), pixels, channels, pointer<float>(out), team_of(parallel, threads));
        });
  m.def("instruction_sets", &instruction_sets);
  m.def("instruction_set", &instruction_set);
  m.def("select_instruction_set", &select_instruction_set, py::arg("name"));
  m.def("has_matrix_units", &has_matrix_units);
}

}  // namespace iiae::convolution
