// The certified scan: int8 products of all pairs on the tensor cores, of which the few that can still enter the top k are kept.
#pragma once

#include "canonical.h"
#include "cuda/filter.h"
#include "cuda/pack.cuh"
#include "cuda/packed.cuh"
#include "cuda/problem.cuh"

namespace iiae::cuda {

// Rows that a query may still get: their cost lies between lowest and highest. A query has `room` places in each array.
struct Candidates {
  std::size_t room;
  float* lowest;
  float* highest;
  std::uint32_t* id;               // row of the piece
  unsigned* count;                 // (queries,); more than `room`: some were lost, and the query has to be searched otherwise
  unsigned* lost;                  // (queries,) those queries
  unsigned* lost_count;            // how many they are
  unsigned long long* statistics;  // see Search
};

// Adds the candidates of the tiles [first, last).
void scan(const Problem& problem, const PackedRows& rows, const PackedQueries& queries, const Filter& filter, std::size_t start,
          const Candidates& candidates, std::size_t first, std::size_t last, cudaStream_t stream);

// Lowers every query's limit to what its candidates prove, and drops those above it.
void tighten(const Problem& problem, const PackedRows& rows, const PackedQueries& queries, const Candidates& candidates,
             std::size_t k, cudaStream_t stream);

}  // namespace iiae::cuda
