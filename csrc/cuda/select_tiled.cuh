// Selection from more keys, or of more of them, than one block does in good time: by many blocks, a launch for every digit.
#pragma once

#include <cuda_runtime.h>

#include "canonical.h"
#include "cuda/packed.cuh"
#include "cuda/select.cuh"

namespace iiae::cuda {

// Memory of a selection for `count` queries.
struct TiledSelection {
  unsigned* bins;     // (count, kBins)
  Key* prefix;        // (count,) the digits of the k-th key that are known
  std::size_t* rank;  // (count,) its rank among the keys that share them
  unsigned* taken;    // (count,)

  TiledSelection() = default;
  TiledSelection(std::size_t count, Carver& memory)
      : bins(memory.take<unsigned>(count * kBins)),
        prefix(memory.take<Key>(count)),
        rank(memory.take<std::size_t>(count)),
        taken(memory.take<unsigned>(count)) {}
};

// best[q] = the k best of itself and of the n keys at keys + q * stride, which has room for k more of them; scratch: (count,
// k).
void keep_best_tiled(std::size_t count, Key* keys, std::size_t stride, std::size_t n, std::size_t k, Key* best, Key* scratch,
                     const TiledSelection& selection, cudaStream_t stream);

}  // namespace iiae::cuda
