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

// Rows that are visited out of order are asked for this many rows earlier; the processor itself only looks ahead within a row.
inline constexpr std::size_t kRowsAhead = 4;

inline void prefetch_row(const Rows& rows, std::size_t i) {
  constexpr std::size_t kLine = 64;
  constexpr std::size_t kMostBytes = 512;  // the processor sees the pattern by then
  const std::size_t bytes = rows.stride < kMostBytes ? rows.stride : kMostBytes;
  for (std::size_t at = 0; at < bytes; at += kLine) __builtin_prefetch(rows.row(i) + at);
}

// A query in float64.
struct CanonicalQuery {
  std::vector<double> values;
  double sq_norm;

  CanonicalQuery(const Kernels& kernels, Metric metric, const Rows& queries, std::size_t i) : values(queries.dim) {
    sq_norm = kernels.load_row(queries, i, metric, values.data());
  }
};

}  // namespace iiae
