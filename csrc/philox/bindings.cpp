// Tensors come as addresses, as they do for convolutions.
#include "philox/bindings.h"

#include "philox/philox.h"

namespace iiae::philox {

namespace py = pybind11;

void register_functions(py::module_& m) {
  m.def("uniforms", [](std::uintptr_t seed, std::uint32_t stream, std::size_t count, float least, std::uintptr_t first,
                       std::uintptr_t second, std::uintptr_t parallel, unsigned threads) {
    const py::gil_scoped_release release;
    uniforms(*reinterpret_cast<const std::uint64_t*>(seed), stream, count, least, reinterpret_cast<float*>(first),
             reinterpret_cast<float*>(second), {reinterpret_cast<Parallel>(parallel), threads});
  });
}

}  // namespace iiae::philox
