// Canonical distances of many pairs, and what is selected from them.
#pragma once

#include "canonical.h"
#include "cuda/canonical.cuh"
#include "cuda/filter.h"
#include "cuda/scan.cuh"
#include "cuda/select_tiled.cuh"
#include "rows.h"

namespace iiae::cuda {

// A piece of the database; the first row has index `start`.
struct Piece {
  Metric metric;
  Rows rows;
  std::size_t start;
};

// keys[q * stride + i] of all queries and all rows i of the piece; kNoKey where the filter says no.
void measure_all(const Piece& piece, const CanonicalQueries& queries, std::size_t count, const Filter& filter, Key* keys,
                 std::size_t stride, cudaStream_t stream);

// best[q] = the k best of itself and of the n keys at keys + q * stride, which has room for k more of them; scratch: (count,
// k).
void keep_best(std::size_t count, Key* keys, std::size_t stride, std::size_t n, std::size_t k, Key* best, Key* scratch,
               const TiledSelection& selection, cudaStream_t stream);

// Measures the candidates of every query that was not lost, and keeps the best; keys: (count, room + k), scratch: (count, k).
void measure_candidates(const Piece& piece, const CanonicalQueries& queries, std::size_t count, const Candidates& candidates,
                        std::size_t k, Key* best, Key* keys, Key* scratch, cudaStream_t stream);

// Does the same for lost queries with all rows of the piece, by `slots` blocks, each of which has rows.count + k places in keys
// and k places in scratch. How many queries were lost need not be known on the host.
void measure_lost(const Piece& piece, const CanonicalQueries& queries, const Candidates& candidates, const Filter& filter,
                  std::size_t k, Key* best, Key* keys, Key* scratch, std::size_t slots, cudaStream_t stream);

// Distances and indices of sorted keys; infinity (negative for inner_product) and -1 where there is none.
void write_results(Metric metric, const Key* best, std::size_t count, float* distances, std::int64_t* indices,
                   cudaStream_t stream);

}  // namespace iiae::cuda
