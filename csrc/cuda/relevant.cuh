// Relevant rows of a batch of queries, and how many other rows come before each of them.
#pragma once

#include <cuda_runtime.h>

#include "canonical.h"
#include "cuda/canonical.cuh"
#include "cuda/packed.cuh"
#include "cuda/select.cuh"

namespace iiae::cuda {

struct RelevantRows {
  std::size_t room;  // places of a query in each array
  Key* keys;         // sorted
  double* lowest;    // a row of a lower cost comes before relevant row i,
  double* highest;   // one of a higher cost after it
  unsigned* ahead;   // 1, for itself, and the other rows that come after relevant row i - 1 and before i
  Key* scratch;
  unsigned* found;  // (count,) relevant rows of a query
  Key* last;        // (count,) the worst of them

  RelevantRows(std::size_t count, std::size_t room, Carver& memory)
      : room(room),
        keys(memory.take<Key>(count * room)),
        lowest(memory.take<double>(count * room)),
        highest(memory.take<double>(count * room)),
        ahead(memory.take<unsigned>(count * room)),
        scratch(memory.take<Key>(count * room)),
        found(memory.take<unsigned>(count)),
        last(memory.take<Key>(count)) {}

  // Counts a row of this key.
  __device__ void add(std::size_t query, Key key) const {
    const std::size_t place = rank_of(keys + query * room, found[query], key);
    if (place < found[query]) atomicAdd(&ahead[query * room + place], 1u);
  }

  // Counts a row whose cost lies between these, if that tells which relevant rows it comes before.
  __device__ bool add_if_clear(std::size_t query, double low, double high) const {
    const std::size_t first = query * room;
    const std::size_t n = found[query];
    std::size_t below = 0;
    for (std::size_t end = n; below < end;) {
      const std::size_t middle = (below + end) / 2;
      if (highest[first + middle] < low) {
        below = middle + 1;
      } else {
        end = middle;
      }
    }
    if (below == n) return true;
    if (!(high < lowest[first + below])) return false;
    atomicAdd(&ahead[first + below], 1u);
    return true;
  }
};

// Whose rows are relevant to whom; labels are numbers from 0 on.
struct Labels {
  const std::int64_t* of_queries;    // (count,)
  const std::int64_t* of_rows;       // (rows of the piece,)
  const std::int64_t* excluded_ids;  // (count,), rows of the database that a ranking leaves out, or null

  __device__ bool counts(std::size_t query, std::size_t row, std::size_t index) const {
    if (of_rows[row] == of_queries[query]) return false;
    return !excluded_ids || excluded_ids[query] != static_cast<std::int64_t>(index);
  }
};

}  // namespace iiae::cuda
