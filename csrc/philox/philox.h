// Counter-based uniform numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <cstddef>
#include <cstdint>

#include "team.h"

namespace iiae::philox {

// The first two words for every element below `count`, with the seed's low and high words as key and (element low, element
// high, stream, 0) as counter, as uniform numbers in [0, 1): a word's sign is folded away and the rest scaled, as Triton does
// it. The first is at least `least`.
void uniforms(std::uint64_t seed, std::uint32_t stream, std::size_t count, float least, float* first, float* second,
              const Team& team);

}  // namespace iiae::philox
