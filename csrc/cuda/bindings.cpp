// Device memory reaches the engine as addresses: what lies there, and that it stays, is the business of
// iiae_fast.retrieval.device, the only caller.
#include "cuda/bindings.h"

#include <pybind11/stl.h>

#include <optional>
#include <tuple>

#include "cuda/engine.h"
#include "names.h"

namespace py = pybind11;

namespace iiae::cuda {

namespace {

using Address = std::uintptr_t;
// (address, rows, columns, bytes from row to row, dtype)
using RowsTuple = std::tuple<Address, std::size_t, std::size_t, std::size_t, std::string>;
// (address, bytes from query to query, bytes from row to row)
using MaskTuple = std::tuple<Address, std::ptrdiff_t, std::ptrdiff_t>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

Stream parse_stream(Address stream) { return pointer<CUstream_st>(stream); }

Rows parse_rows(const RowsTuple& rows) {
  const auto& [address, count, dim, stride, dtype] = rows;
  const DTypeInfo info = parse_dtype(dtype);
  const std::size_t row_bytes = checked_product(dim, info.size, "row size");
  if (dim == 0 || (count > 1 && stride < row_bytes) || stride % info.size != 0 || address % info.size != 0) {
    throw std::invalid_argument("rows must be aligned and contiguous in their last dimension");
  }
  checked_product(count, stride, "rows");
  return {pointer<const std::byte>(address), count, dim, stride, info.dtype};
}

Mask parse_mask(const std::optional<MaskTuple>& mask) {
  if (!mask) return {};
  const auto& [address, query_stride, row_stride] = *mask;
  return {pointer<const std::uint8_t>(address), query_stride, row_stride};
}

Search make_search(const std::string& metric, const RowsTuple& rows, std::size_t start, bool scans, const RowsTuple& queries,
                   const std::optional<MaskTuple>& allowed, const std::optional<MaskTuple>& excluded, Address excluded_ids,
                   std::size_t k, Address best, Address statistics) {
  Search search{parse_metric(metric),
                parse_rows(rows),
                start,
                scans,
                parse_rows(queries),
                {parse_mask(allowed), parse_mask(excluded), pointer<const std::int64_t>(excluded_ids)},
                k,
                pointer<Key>(best),
                pointer<unsigned long long>(statistics)};
  if (search.rows.dim != search.queries.dim) throw std::invalid_argument("queries and rows differ in width");
  if (k < 1) throw std::invalid_argument("k must be at least 1");
  if (start > 0xffffffffu || search.rows.count > 0xffffffffu - start) {
    throw std::invalid_argument("the database has more than 4,294,967,295 rows, the most that one index holds");
  }
  checked_product(checked_product(search.queries.count, k, "results"), sizeof(Key), "results");
  return search;
}

Evaluation make_evaluation(const std::string& metric, const RowsTuple& queries, Address query_labels, Address row_labels,
                           Address rows_by_label, Address label_starts, Address excluded_ids, std::size_t most_relevant,
                           std::size_t most_scanned, Address cutoffs, std::size_t cutoff_count, Address measures,
                           Address statistics) {
  return {parse_metric(metric),
          parse_rows(queries),
          pointer<const std::int64_t>(query_labels),
          pointer<const std::int64_t>(row_labels),
          pointer<const std::int64_t>(rows_by_label),
          pointer<const std::int64_t>(label_starts),
          pointer<const std::int64_t>(excluded_ids),
          most_relevant,
          most_scanned,
          pointer<const std::int64_t>(cutoffs),
          cutoff_count,
          pointer<double>(measures),
          pointer<unsigned long long>(statistics)};
}

void check_part(const Evaluation& evaluation, std::size_t first, std::size_t count) {
  if (first > evaluation.queries.count || count > evaluation.queries.count - first) {
    throw std::invalid_argument("there are not so many queries");
  }
}

Rows parse_piece(const Evaluation& evaluation, const RowsTuple& rows) {
  const Rows parsed = parse_rows(rows);
  if (parsed.dim != evaluation.queries.dim) throw std::invalid_argument("queries and rows differ in width");
  return parsed;
}

}  // namespace

void register_functions(py::module_& m) {
  m.def(
      "packed_bytes",
      [](const std::string& metric, const RowsTuple& rows) { return packed_bytes(parse_metric(metric), parse_rows(rows)); },
      py::arg("metric"), py::arg("rows"));
  m.def(
      "pack",
      [](const std::string& metric, const RowsTuple& rows, Address packed, Address stream) {
        pack(parse_metric(metric), parse_rows(rows), pointer<std::byte>(packed), parse_stream(stream));
      },
      py::arg("metric"), py::arg("rows"), py::arg("packed"), py::arg("stream"));
  m.def(
      "can_scan", [](const std::string& metric, std::size_t dim) { return can_scan(parse_metric(metric), dim); },
      py::arg("metric"), py::arg("dim"));
  py::class_<Search>(m, "Search", py::module_local())  // tests load a second module with this engine
      .def(py::init(&make_search), py::arg("metric"), py::arg("rows"), py::arg("start"), py::arg("scans"), py::arg("queries"),
           py::arg("allowed"), py::arg("excluded"), py::arg("excluded_ids"), py::arg("k"), py::arg("best"),
           py::arg("statistics"))
      .def(
          "workspace_bytes", [](const Search& self, std::size_t batch) { return workspace_bytes(self, batch); },
          py::arg("batch"))
      .def(
          "run",
          [](const Search& search, Address packed, Address workspace, std::size_t size, Address stream) {
            run(search, pointer<const std::byte>(packed), pointer<std::byte>(workspace), size, parse_stream(stream));
          },
          py::arg("packed"), py::arg("workspace"), py::arg("size"), py::arg("stream"));
  py::class_<Evaluation>(m, "Evaluation", py::module_local())
      .def(py::init(&make_evaluation), py::arg("metric"), py::arg("queries"), py::arg("query_labels"), py::arg("row_labels"),
           py::arg("rows_by_label"), py::arg("label_starts"), py::arg("excluded_ids"), py::arg("most_relevant"),
           py::arg("most_scanned"), py::arg("cutoffs"), py::arg("cutoff_count"), py::arg("measures"), py::arg("statistics"))
      .def(
          "workspace_bytes", [](const Evaluation& self, std::size_t batch) { return workspace_bytes(self, batch); },
          py::arg("batch"))
      .def(
          "start",
          [](const Evaluation& self, std::size_t first, std::size_t count, Address workspace, Address stream) {
            check_part(self, first, count);
            start(self, first, count, pointer<std::byte>(workspace), parse_stream(stream));
          },
          py::arg("first"), py::arg("count"), py::arg("workspace"), py::arg("stream"))
      .def(
          "collect",
          [](const Evaluation& self, const RowsTuple& rows, std::size_t start, std::size_t first, std::size_t count,
             Address workspace, Address stream) {
            check_part(self, first, count);
            collect(self, parse_piece(self, rows), start, first, count, pointer<std::byte>(workspace), parse_stream(stream));
          },
          py::arg("rows"), py::arg("start"), py::arg("first"), py::arg("count"), py::arg("workspace"), py::arg("stream"))
      .def(
          "sort",
          [](const Evaluation& self, std::size_t count, Address workspace, Address stream) {
            sort(self, count, pointer<std::byte>(workspace), parse_stream(stream));
          },
          py::arg("count"), py::arg("workspace"), py::arg("stream"))
      .def(
          "count",
          [](const Evaluation& self, const RowsTuple& rows, std::size_t start, Address packed, std::size_t first,
             std::size_t size, Address workspace, Address stream) {
            check_part(self, first, size);
            const Rows parsed = parse_piece(self, rows);
            if (packed != 0 && parsed.count > self.most_scanned)
              throw std::invalid_argument("there is no room to scan so many rows");
            count(self, parsed, start, pointer<const std::byte>(packed), first, size, pointer<std::byte>(workspace),
                  parse_stream(stream));
          },
          py::arg("rows"), py::arg("start"), py::arg("packed"), py::arg("first"), py::arg("count"), py::arg("workspace"),
          py::arg("stream"))
      .def(
          "rank",
          [](const Evaluation& self, std::size_t first, std::size_t count, Address workspace, Address stream) {
            check_part(self, first, count);
            rank(self, first, count, pointer<std::byte>(workspace), parse_stream(stream));
          },
          py::arg("first"), py::arg("count"), py::arg("workspace"), py::arg("stream"));
  m.def(
      "write",
      [](const std::string& metric, Address best, std::size_t count, Address distances, Address indices, Address stream) {
        write(parse_metric(metric), pointer<const Key>(best), count, pointer<float>(distances), pointer<std::int64_t>(indices),
              parse_stream(stream));
      },
      py::arg("metric"), py::arg("best"), py::arg("count"), py::arg("distances"), py::arg("indices"), py::arg("stream"));
  m.def(
      "validate",
      [](const std::string& metric, const RowsTuple& rows, std::size_t start, Address first_bad, Address stream) {
        validate(parse_metric(metric), parse_rows(rows), start, pointer<unsigned long long>(first_bad), parse_stream(stream));
      },
      py::arg("metric"), py::arg("rows"), py::arg("start"), py::arg("first_bad"), py::arg("stream"));
}

}  // namespace iiae::cuda
