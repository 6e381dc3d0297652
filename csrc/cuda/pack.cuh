// Brings rows and queries into the form that the scan reads.
#pragma once

#include "canonical.h"
#include "cuda/canonical.cuh"
#include "cuda/packed.cuh"
#include "cuda/problem.cuh"
#include "rows.h"

namespace iiae::cuda {

void pack_rows(const Problem& problem, const Rows& rows, const PackedRows& packed, cudaStream_t stream);

// Queries [first, first + count) in float64, which every path needs.
void convert_queries(Metric metric, const Rows& queries, double* values, double* sq_norms, cudaStream_t stream);

struct PackedQueries {
  std::size_t count;
  std::int8_t* values;  // [tile][chunk][vector][64]
  QueryState* states;   // (count,)
  QueryBound* bounds;   // (tiles * 128,); those past `count` let nothing pass

  PackedQueries() = default;
  PackedQueries(std::size_t count, std::size_t width, Carver& memory) : count(count) {
    const std::size_t places = (count + kTileVectors - 1) / kTileVectors * kTileVectors;
    values = memory.take<std::int8_t>(places * ((width + kChunk - 1) / kChunk) * kChunk);
    states = memory.take<QueryState>(count);
    bounds = memory.take<QueryBound>(places);
  }
};

// `best` holds the k best keys of earlier pieces for every query, sorted.
void pack_queries(const Problem& problem, const CanonicalQueries& canonical, const PackedRows& rows, const Key* best,
                  std::size_t k, const PackedQueries& packed, cudaStream_t stream);

// What the scan compares with, so that every row of a cost up to state.limit passes.
__device__ inline QueryBound bound_of(const Problem& problem, const QueryState& state, const Units& units) {
  // Relative room for fp32 rounding: of a bound's two products and their sum, and of its factors.
  constexpr double kFloatRoom = 0x1p-20;
  constexpr double kLargestBound = 1e37;
  const double unit = state.scale * as_double(units.scale);
  const double slack = state.slack + problem.rounding * fabs(state.limit);
  const double a = (state.offset - state.limit - slack) / unit;
  const double b = as_double(units.offset) / state.scale;
  const bool fits = fabs(a) < kLargestBound && b < kLargestBound;  // an open limit does not
  QueryBound bound;
  bound.a = fits ? static_cast<float>(a - fabs(a) * kFloatRoom) : -INFINITY;
  bound.b = fits ? static_cast<float>(b) : 0.0f;
  bound.norm = above(state.norm);
  bound.residual = above(state.residual);
  return bound;
}

}  // namespace iiae::cuda
