// The precision of a scan, by what it costs on the data at hand.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "cpu/packing.h"
#include "cpu/problem.h"

namespace iiae {

// int8 halves the products of int16 but leaves more candidates. `packed`: int8 rows are there already.
Format choose_format(const Kernels& kernels, const Problem& problem, const Rows& queries,
                     const std::vector<std::uint32_t>& which, const Piece& piece, std::size_t k, bool packed);

}  // namespace iiae
