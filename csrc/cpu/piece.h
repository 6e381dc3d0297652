// What a search works on at a time.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "rows.h"

namespace iiae {

// Rows of a piece, which starts at index `start` of the database.
struct Piece {
  Rows rows;
  std::size_t start;
  std::vector<std::uint32_t> ids;  // if `selected`: the rows that are considered at all
  bool selected = false;

  std::size_t count() const { return selected ? ids.size() : rows.count; }
  std::uint32_t id(std::size_t i) const { return selected ? ids[i] : static_cast<std::uint32_t>(i); }
};

// A query in float64.
struct CanonicalQuery {
  std::vector<double> values;
  double sq_norm;

  CanonicalQuery(const Kernels& kernels, Metric metric, const Rows& queries, std::size_t i) : values(queries.dim) {
    sq_norm = kernels.load_row(queries, i, metric, values.data());
  }
};

}  // namespace iiae
