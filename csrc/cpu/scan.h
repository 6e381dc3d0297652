// The certified scan: low-precision products of all pairs, canonical distances of the few that can still enter the top k.
#pragma once

#include <optional>
#include <vector>

#include "cpu/filter.h"
#include "cpu/kernels.h"
#include "cpu/packing.h"
#include "cpu/results.h"
#include "rows.h"

namespace iiae {

// Does what brute_force does for the queries that are named, in less time. Without a format, int8 or int16 is chosen by what it
// costs on this data. `packed` holds the rows of the piece in int8 already, or is null; it is used if int8 is.
void certified_scan(const Kernels& kernels, std::optional<Format> format, Metric metric, const Rows& queries,
                    const std::vector<std::uint32_t>& which, const Piece& piece, const Filter& filter, std::size_t k,
                    std::size_t threads, const PackedPiece* packed, Results& results);

}  // namespace iiae
