// Which rows a query may be given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

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

// Masks count rows from the start of the piece that is scanned, `ids` from the start of the database.
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

}  // namespace iiae
