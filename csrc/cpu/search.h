// Exact nearest neighbours of a set of queries in a database that is scanned in one or many pieces.
#pragma once

#include <optional>
#include <vector>

#include "cpu/top_k.h"
#include "rows.h"

namespace iiae {

// One byte for every (query, row), nonzero for true; query_stride 0 shares one row of bytes among all queries.
struct Mask {
  const std::uint8_t* data;
  std::ptrdiff_t query_stride;
  std::ptrdiff_t row_stride;

  bool at(std::size_t query, std::size_t row) const {
    return data[static_cast<std::ptrdiff_t>(query) * query_stride + static_cast<std::ptrdiff_t>(row) * row_stride] != 0;
  }
};

// Which rows a query may not be given. Masks count rows from the start of the piece, `ids` from that of the database.
struct Filter {
  std::optional<Mask> allowed;
  std::optional<Mask> excluded;
  const std::int64_t* ids = nullptr;  // (Q,), a row that query must not get; negative for none

  bool passes(std::size_t query, std::size_t row, std::size_t index) const {
    if (ids && ids[query] == static_cast<std::int64_t>(index)) return false;
    if (allowed && !allowed->at(query, row)) return false;
    return !(excluded && excluded->at(query, row));
  }
};

class Searcher {
 public:
  // `queries` must outlive the searcher; Gaussian queries are lifted already.
  Searcher(const Rows& queries, Metric metric, std::size_t k, std::size_t threads);

  // Considers `rows`, whose first row has index `start`.
  void scan(const Rows& rows, std::size_t start, const Filter& filter);

  // Writes (Q, k) results, ascending; a query with fewer than k permitted rows is filled up with index -1 and distance
  // infinity (negative infinity for inner_product).
  void write(float* distances, std::int64_t* indices);

 private:
  Rows queries_;
  Metric metric_;
  std::size_t k_;
  std::size_t threads_;
  std::vector<TopK> best_;  // (Q,)
};

}  // namespace iiae
