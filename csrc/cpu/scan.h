// The certified scan: low-precision products of all pairs, canonical distances of the few that can still enter the top k.
#pragma once

#include <vector>

#include "cpu/brute_force.h"
#include "cpu/filter.h"
#include "cpu/kernels.h"
#include "cpu/top_k.h"
#include "rows.h"

namespace iiae {

// Does what brute_force does for the queries that are named, in less time.
void certified_scan(const Kernels& kernels, Format format, Metric metric, const Rows& queries,
                    const std::vector<std::uint32_t>& which, const Piece& piece, const Filter& filter, std::size_t k,
                    std::size_t threads, std::vector<TopK>& best);

}  // namespace iiae
