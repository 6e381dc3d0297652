// The Python module iiae_fast._C: the retrieval engine, and the submodules that others register. It checks shapes and dtypes of
// what it is handed; values and meaning are checked by iiae_fast.retrieval, which is this file's only caller.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cfenv>
#include <memory>

#include "adam/bindings.h"
#include "batch_norm/bindings.h"
#include "canonical.h"
#include "convolution/bindings.h"
#include "cpu/kernels.h"
#include "cpu/ranking.h"
#include "cpu/search.h"
#include "cpu/validate.h"
#include "names.h"
#include "philox/bindings.h"
#include "reconstruction/bindings.h"
#ifdef IIAE_WITH_CUDA
#include "cuda/bindings.h"
#endif

namespace py = pybind11;

namespace {

using iiae::DTypeInfo;
using iiae::Metric;
using iiae::parse_dtype;
using iiae::parse_metric;
using iiae::Rows;
using Ids = py::array_t<std::int64_t, py::array::c_style>;

Rows parse_rows(const py::array& array, const std::string& dtype_name) {
  const DTypeInfo info = parse_dtype(dtype_name);
  if (array.ndim() != 2) throw std::invalid_argument("rows must be a matrix");
  if (array.dtype().kind() != info.kind || static_cast<std::size_t>(array.itemsize()) != info.size) {
    throw std::invalid_argument("the array is not of dtype " + dtype_name);
  }
  const auto count = static_cast<std::size_t>(array.shape(0));
  const auto dim = static_cast<std::size_t>(array.shape(1));
  const std::size_t row_bytes = iiae::checked_product(dim, info.size, "row size");
  if (count == 0) return {static_cast<const std::byte*>(array.data()), 0, dim, row_bytes, info.dtype};
  const bool dense = dim <= 1 || array.strides(1) == static_cast<py::ssize_t>(info.size);
  const bool spaced = count <= 1 || (array.strides(0) >= static_cast<py::ssize_t>(row_bytes) &&
                                     static_cast<std::size_t>(array.strides(0)) % info.size == 0);
  if (!dense || !spaced || reinterpret_cast<std::uintptr_t>(array.data()) % info.size != 0) {
    throw std::invalid_argument("rows must be aligned and contiguous in their last dimension");
  }
  const std::size_t stride = count <= 1 ? row_bytes : static_cast<std::size_t>(array.strides(0));
  iiae::checked_product(count, stride, "rows");
  return {static_cast<const std::byte*>(array.data()), count, dim, stride, info.dtype};
}

// While the engine computes: other Python threads run, and floating-point arithmetic is IEEE's, whatever mode the caller is in
// (torch.set_flush_denormal, or a library built with -ffast-math). Threads started meanwhile inherit it.
class Computing {
 public:
  Computing() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~Computing() { std::fesetenv(&before_); }
  Computing(const Computing&) = delete;
  Computing& operator=(const Computing&) = delete;

 private:
  std::fenv_t before_;
  py::gil_scoped_release release_;
};

std::size_t parse_count(py::ssize_t value, const char* name) {
  if (value < 1) throw std::invalid_argument(std::string(name) + " must be at least 1");
  return static_cast<std::size_t>(value);
}

void check_index_range(std::size_t start, std::size_t count) {
  if (start > 0xffffffffu || count > 0xffffffffu - start) {
    throw std::invalid_argument("the database has more than 4,294,967,295 rows, the most that one index holds");
  }
}

const std::int64_t* parse_ids(const std::optional<Ids>& ids, std::size_t count, const char* name) {
  if (!ids) return nullptr;
  if (ids->ndim() != 1 || static_cast<std::size_t>(ids->shape(0)) != count) {
    throw std::invalid_argument(std::string(name) + " must have one entry per row");
  }
  return ids->data();
}

std::optional<iiae::Mask> parse_mask(const std::optional<py::array_t<bool, 0>>& mask, std::size_t queries, std::size_t rows) {
  if (!mask) return std::nullopt;
  const bool shared = mask->ndim() == 1;
  if (!shared && (mask->ndim() != 2 || static_cast<std::size_t>(mask->shape(0)) != queries)) {
    throw std::invalid_argument("a mask must be (N,) or (Q, N)");
  }
  const py::ssize_t last = shared ? 0 : 1;
  if (static_cast<std::size_t>(mask->shape(last)) != rows) throw std::invalid_argument("a mask must have one entry per row");
  return iiae::Mask{static_cast<const std::uint8_t*>(static_cast<const void*>(mask->data())), shared ? 0 : mask->strides(0),
                    mask->strides(last)};
}

void check_same_width(const Rows& queries, const Rows& rows) {
  if (queries.dim != rows.dim) throw std::invalid_argument("queries and rows differ in width");
}

// Packed rows of one array, for a Searcher that scans the same array.
class PyPackedRows {
 public:
  PyPackedRows(py::array array, const std::string& dtype, const std::string& metric, py::ssize_t threads)
      : array_(std::move(array)), rows_(parse_rows(array_, dtype)), metric_(parse_metric(metric)) {
    if (rows_.count == 0) throw std::invalid_argument("there are no rows to pack");
    check_index_range(0, rows_.count);
    const std::size_t workers = parse_count(threads, "threads");
    const Computing computing;
    packed_ = std::make_unique<iiae::PackedPiece>(iiae::kernels(), metric_, rows_, workers);
  }

  const iiae::PackedPiece* of(const Rows& rows, Metric metric) const {
    if (rows.data != rows_.data || rows.count != rows_.count || rows.dim != rows_.dim || rows.stride != rows_.stride ||
        rows.dtype != rows_.dtype || metric != metric_) {
      throw std::invalid_argument("the packed rows are those of another array or metric");
    }
    return packed_.get();
  }

 private:
  py::array array_;
  Rows rows_;
  Metric metric_;
  std::unique_ptr<iiae::PackedPiece> packed_;
};

// A Searcher that keeps its queries alive.
class PySearcher {
 public:
  PySearcher(py::array queries, const std::string& dtype, const std::string& metric, py::ssize_t k, py::ssize_t threads)
      : array_(std::move(queries)),
        rows_(parse_rows(array_, dtype)),
        metric_(parse_metric(metric)),
        k_(parse_count(k, "k")),
        distances_(shape()),
        indices_(shape()),
        searcher_(rows_, metric_, k_, parse_count(threads, "threads"), distances_.mutable_data(), indices_.mutable_data()) {}

  void scan(const py::array& array, const std::string& dtype, std::size_t start,
            const std::optional<py::array_t<bool, 0>>& allowed, const std::optional<py::array_t<bool, 0>>& excluded,
            const std::optional<Ids>& excluded_ids, const PyPackedRows* packed_rows) {
    if (done_) throw std::logic_error("scan() after result()");
    const Rows rows = parse_rows(array, dtype);
    check_same_width(rows_, rows);
    check_index_range(start, rows.count);
    const iiae::Filter filter{parse_mask(allowed, rows_.count, rows.count), parse_mask(excluded, rows_.count, rows.count),
                              parse_ids(excluded_ids, rows_.count, "excluded_ids")};
    const iiae::PackedPiece* packed = packed_rows ? packed_rows->of(rows, metric_) : nullptr;
    const Computing computing;
    searcher_.scan(rows, start, filter, packed);
  }

  // (Q, k) distances and indices; nothing can be scanned afterwards.
  py::tuple result() {
    done_ = true;
    searcher_.finish();
    return py::make_tuple(distances_, indices_);
  }

 private:
  std::vector<std::size_t> shape() const {
    iiae::checked_product(iiae::checked_product(rows_.count, k_, "results"), sizeof(std::int64_t), "results");
    return {rows_.count, k_};
  }

  py::array array_;
  Rows rows_;
  Metric metric_;
  std::size_t k_;
  py::array_t<float> distances_;
  Ids indices_;
  bool done_ = false;
  iiae::Searcher searcher_;
};

// A Ranking that keeps its queries and labels alive.
class PyRanking {
 public:
  PyRanking(py::array queries, const std::string& dtype, const std::string& metric, Ids labels, std::optional<Ids> excluded_ids,
            py::ssize_t threads)
      : array_(std::move(queries)),
        labels_(std::move(labels)),
        excluded_ids_(std::move(excluded_ids)),
        rows_(parse_rows(array_, dtype)),
        ranking_(rows_, parse_metric(metric), parse_ids(labels_, rows_.count, "labels"),
                 parse_ids(excluded_ids_, rows_.count, "excluded_ids"), parse_count(threads, "threads")) {}

  void collect(const py::array& array, const std::string& dtype, std::size_t start, const Ids& labels) {
    visit(array, dtype, start, labels,
          [&](const Rows& rows, const std::int64_t* row_labels) { ranking_.collect(rows, start, row_labels); });
  }

  void count(const py::array& array, const std::string& dtype, std::size_t start, const Ids& labels) {
    visit(array, dtype, start, labels,
          [&](const Rows& rows, const std::int64_t* row_labels) { ranking_.count(rows, start, row_labels); });
  }

  // (offsets (Q + 1,), ranks): those of query q are ranks[offsets[q]:offsets[q + 1]].
  py::tuple ranks() {
    const auto ranks = ranking_.ranks();
    Ids offsets(static_cast<py::ssize_t>(ranks.size() + 1));
    std::int64_t* offset = offsets.mutable_data();
    offset[0] = 0;
    for (std::size_t q = 0; q < ranks.size(); ++q) offset[q + 1] = offset[q] + static_cast<std::int64_t>(ranks[q].size());
    Ids flat(offset[ranks.size()]);
    std::int64_t* out = flat.mutable_data();
    for (const auto& one : ranks) out = std::copy(one.begin(), one.end(), out);
    return py::make_tuple(offsets, flat);
  }

 private:
  template <class Visit>
  void visit(const py::array& array, const std::string& dtype, std::size_t start, const Ids& labels, Visit visit) {
    const Rows rows = parse_rows(array, dtype);
    check_same_width(rows_, rows);
    check_index_range(start, rows.count);
    const std::int64_t* row_labels = parse_ids(labels, rows.count, "labels");
    const Computing computing;
    visit(rows, row_labels);
  }

  py::array array_;
  std::optional<Ids> labels_;
  std::optional<Ids> excluded_ids_;
  Rows rows_;
  iiae::Ranking ranking_;
};

void validate(const py::array& array, const std::string& dtype, const std::string& metric, const std::string& name,
              std::size_t start, py::ssize_t threads) {
  const Rows rows = parse_rows(array, dtype);
  const Metric parsed = parse_metric(metric);
  const std::size_t workers = parse_count(threads, "threads");
  const Computing computing;
  iiae::validate(rows, parsed, name, start, workers);
}

py::array_t<double> lift(const py::array& array, const std::string& dtype, const std::string& metric, py::ssize_t threads) {
  const Rows rows = parse_rows(array, dtype);
  const Metric parsed = parse_metric(metric);
  const std::size_t workers = parse_count(threads, "threads");
  if (!iiae::is_gaussian(parsed) || rows.dim % 2 != 0) throw std::invalid_argument("only packed Gaussian rows are lifted");
  const std::size_t width = iiae::lifted_dim(parsed, rows.dim);
  iiae::checked_product(iiae::checked_product(rows.count, width, "lifted rows"), sizeof(double), "lifted rows");
  py::array_t<double> out({rows.count, width});
  double* data = out.mutable_data();
  {
    const Computing computing;
    iiae::lift_rows(rows, parsed, data, workers);
  }
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The exact retrieval engine, through iiae_fast.retrieval, and kernels of training.";
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const iiae::Kernels* one : iiae::supported_kernels()) names.emplace_back(one->name);
    return names;
  });
  m.def("instruction_set", [] { return std::string(iiae::kernels().name); });
  m.def("select_instruction_set", &iiae::select_kernels, py::arg("name"));
  m.def("select_method", &iiae::select_method, py::arg("name"));
  m.def("validate", &validate, py::arg("rows"), py::arg("dtype"), py::arg("metric"), py::arg("name"), py::arg("start"),
        py::arg("threads"));
  m.def("lift", &lift, py::arg("rows"), py::arg("dtype"), py::arg("metric"), py::arg("threads"));
  py::class_<PyPackedRows>(m, "PackedRows")
      .def(py::init<py::array, const std::string&, const std::string&, py::ssize_t>(), py::arg("rows"), py::arg("dtype"),
           py::arg("metric"), py::arg("threads"));
  py::class_<PySearcher>(m, "Searcher")
      .def(py::init<py::array, const std::string&, const std::string&, py::ssize_t, py::ssize_t>(), py::arg("queries"),
           py::arg("dtype"), py::arg("metric"), py::arg("k"), py::arg("threads"))
      .def("scan", &PySearcher::scan, py::arg("rows"), py::arg("dtype"), py::arg("start"), py::arg("allowed").noconvert(),
           py::arg("excluded").noconvert(), py::arg("excluded_ids").noconvert(), py::arg("packed") = nullptr)
      .def("result", &PySearcher::result);
  py::class_<PyRanking>(m, "Ranking")
      .def(py::init<py::array, const std::string&, const std::string&, Ids, std::optional<Ids>, py::ssize_t>(),
           py::arg("queries"), py::arg("dtype"), py::arg("metric"), py::arg("labels"), py::arg("excluded_ids"),
           py::arg("threads"))
      .def("collect", &PyRanking::collect, py::arg("rows"), py::arg("dtype"), py::arg("start"), py::arg("labels"))
      .def("count", &PyRanking::count, py::arg("rows"), py::arg("dtype"), py::arg("start"), py::arg("labels"))
      .def("ranks", &PyRanking::ranks);
  py::module_ convolution = m.def_submodule("convolution", "Convolutions in bf16. Use it through iiae_fast.convolution.");
  iiae::convolution::register_functions(convolution);
  py::module_ batch_norm = m.def_submodule("batch_norm", "BatchNorm in bf16. Use it through iiae_fast.batch_norm.");
  iiae::batch_norm::register_functions(batch_norm);
  py::module_ adam = m.def_submodule("adam", "An optimizer. Use it through iiae_fast.adam.");
  iiae::adam::register_functions(adam);
  py::module_ philox = m.def_submodule("philox", "Random numbers. Use it through iiae_fast.kernels.");
  iiae::philox::register_functions(philox);
  py::module_ reconstruction = m.def_submodule("reconstruction", "Losses of bf16 images. Use it through iiae_fast.kernels.");
  iiae::reconstruction::register_functions(reconstruction);
#ifdef IIAE_WITH_CUDA
  py::module_ cuda = m.def_submodule("cuda", "The same on CUDA devices. Use it through iiae_fast.retrieval.");
  iiae::cuda::register_functions(cuda);
#endif
}
