// Canonical distances of all permitted pairs: what remains when a scan doesn't pay or can't be certified.
#pragma once

#include <vector>

#include "cpu/filter.h"
#include "cpu/kernels.h"
#include "cpu/piece.h"
#include "cpu/results.h"
#include "rows.h"

namespace iiae {

// Adds all permitted rows to the results of the queries that are named.
void brute_force(const Kernels& kernels, Metric metric, const Rows& queries, const std::vector<std::uint32_t>& which,
                 const Piece& piece, const Filter& filter, std::size_t k, std::size_t threads, Results& results);

}  // namespace iiae
