// Which rows a query may be given.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rows.h"

namespace iiae::cuda {

// One byte for every (query, row), nonzero for true; query_stride 0 shares one row of bytes among all queries. None if `data`
// is null.
struct Mask {
  const std::uint8_t* data = nullptr;
  std::ptrdiff_t query_stride = 0;
  std::ptrdiff_t row_stride = 0;

  IIAE_BOTH bool at(std::size_t query, std::size_t row) const {
    return data[static_cast<std::ptrdiff_t>(query) * query_stride + static_cast<std::ptrdiff_t>(row) * row_stride] != 0;
  }
};

// Masks count rows from the start of the piece that is scanned, `ids` from the start of the database.
struct Filter {
  Mask allowed;
  Mask excluded;
  const std::int64_t* ids = nullptr;  // (Q,), a row that query must not get; negative for none

  IIAE_BOTH bool passes(std::size_t query, std::size_t row, std::size_t index) const {
    if (ids && ids[query] == static_cast<std::int64_t>(index)) return false;
    if (allowed.data && !allowed.at(query, row)) return false;
    return !(excluded.data && excluded.at(query, row));
  }

  // The same for queries that start at `first`.
  Filter from(std::size_t first) const {
    Filter result = *this;
    const auto offset = static_cast<std::ptrdiff_t>(first);
    if (allowed.data) result.allowed.data += offset * allowed.query_stride;
    if (excluded.data) result.excluded.data += offset * excluded.query_stride;
    if (ids) result.ids += first;
    return result;
  }
};

}  // namespace iiae::cuda
