#include "philox/bindings.h"

#include "addresses.h"
#include "philox/philox.h"

namespace iiae::philox {

namespace py = pybind11;

void register_functions(py::module_& m) {
  m.def("uniforms", [](Address seed, std::uint32_t stream, std::size_t count, float least, Address first, Address second,
                       Address parallel, unsigned threads) {
    const py::gil_scoped_release release;
    uniforms(*pointer<const std::uint64_t>(seed), stream, count, least, pointer<float>(first), pointer<float>(second),
             team_of(parallel, threads));
  });
}

}  // namespace iiae::philox
