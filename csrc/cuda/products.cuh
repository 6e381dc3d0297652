// Int8 products of tiles of rows and of queries on the tensor cores. A block multiplies a tile of 128 rows with a tile of
// queries, 64 dimensions at a time: stages of shared memory are filled by asynchronous copies while the tensor cores work on an
// earlier one. Sums stay in registers, for whoever asked for them.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "cuda/packed.cuh"
#include "cuda/ptx.cuh"

namespace iiae::cuda {

inline constexpr unsigned kProductWarps = 8;
inline constexpr unsigned kProductThreads = kProductWarps * kWarp;
inline constexpr unsigned kStages = 3;
inline constexpr std::size_t kRowBytes = kTileVectors * kChunk;
inline constexpr std::size_t kResidentChunks = 4;  // of query tiles that stay in shared memory

// How a tile is dealt out to the 8 warps: each has 16 kRowBlocks rows and 8 kQueryBlocks queries.
template <unsigned kRowBlocksOfWarp, unsigned kQueryBlocksOfWarp, unsigned kWarpsOfRows>
struct TileShape {
  static constexpr unsigned kRowBlocks = kRowBlocksOfWarp;
  static constexpr unsigned kQueryBlocks = kQueryBlocksOfWarp;
  static constexpr unsigned kRowWarps = kWarpsOfRows;
  static constexpr unsigned kQueries = kProductWarps / kRowWarps * kQueryBlocks * 8;
  static constexpr std::size_t kQueryBytes = kQueries * kChunk;
  // That run at once on a multiprocessor, by their registers: more where there are few sums, for more copies under way.
  static constexpr unsigned kBlocksAtOnce = kRowBlocks * kQueryBlocks == 1 ? 4 : 2;
  using Sums = std::int32_t[kRowBlocks][kQueryBlocks][4];
};

// Which rows and queries of the tile this lane's sums belong to: sums[r][c][2 half + side] is of row(r, half) and column(c,
// side).
template <class Shape>
struct TileLane {
  unsigned group = threadIdx.x % kWarp / 4;
  unsigned quad = threadIdx.x % kWarp % 4;
  unsigned first_row = threadIdx.x / kWarp % Shape::kRowWarps * Shape::kRowBlocks * 16;
  unsigned first_column = threadIdx.x / kWarp / Shape::kRowWarps * Shape::kQueryBlocks * 8;

  __device__ unsigned row(unsigned r, unsigned half) const { return first_row + 16 * r + 8 * half + group; }
  __device__ unsigned column(unsigned c, unsigned side) const { return first_column + 8 * c + 2 * quad + side; }
};

__device__ inline void copy_block(std::byte* shared, const std::int8_t* global, std::size_t bytes) {
  for (std::size_t at = 16 * threadIdx.x; at < bytes; at += 16 * kProductThreads) copy_async(shared + at, global + at);
}

// Calls finish(tile, sums) for this block's share of the row tiles [first, last) and the query tile blockIdx.y. With kResident,
// all chunks of the query tile stay in shared memory; else they come with each stage.
template <class Shape, bool kResident, class Finish>
__device__ __forceinline__ void multiply_tiles(const PackedRows& rows, const std::int8_t* query_values, std::size_t first,
                                               std::size_t last, Finish finish) {
  constexpr unsigned kRowBlocks = Shape::kRowBlocks;
  constexpr unsigned kQueryBlocks = Shape::kQueryBlocks;
  std::byte* const memory = dynamic_shared();
  const std::size_t chunks = rows.chunks;
  const std::size_t stage_bytes = kRowBytes + (kResident ? 0 : Shape::kQueryBytes);
  std::byte* const stages = memory + (kResident ? chunks * Shape::kQueryBytes : 0);
  const std::size_t first_query = blockIdx.y * Shape::kQueries;
  // The queries of this tile lie in a wider one.
  const std::int8_t* const queries =
      query_values + first_query / kTileVectors * chunks * kRowBytes + first_query % kTileVectors * kChunk;
  const TileLane<Shape> lane;

  if (kResident) {
    for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
      copy_block(memory + chunk * Shape::kQueryBytes, queries + chunk * kRowBytes, Shape::kQueryBytes);
    }
  }
  const std::size_t tiles = last - first;
  const std::size_t own_tiles = blockIdx.x < tiles ? (tiles - blockIdx.x + gridDim.x - 1) / gridDim.x : 0;
  const std::size_t steps = own_tiles * chunks;
  const auto fill = [&](std::size_t step) {
    if (step < steps) {
      const std::size_t tile = first + blockIdx.x + step / chunks * gridDim.x;
      const std::size_t chunk = step % chunks;
      std::byte* const stage = stages + step % kStages * stage_bytes;
      copy_block(stage, rows.values + (tile * chunks + chunk) * kRowBytes, kRowBytes);
      if (!kResident) copy_block(stage + kRowBytes, queries + chunk * kRowBytes, Shape::kQueryBytes);
    }
    close_copies();  // an empty group too, so that groups can be counted
  };
  for (unsigned stage = 0; stage < kStages - 1; ++stage) fill(stage);

  typename Shape::Sums sums = {};
  for (std::size_t step = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    __syncthreads();  // what this step reads has come, and nobody reads what is filled next
    fill(step + kStages - 1);
    const std::size_t chunk = step % chunks;
    const std::byte* const values = stages + step % kStages * stage_bytes;
    const std::byte* const columns = kResident ? memory + chunk * Shape::kQueryBytes : values + kRowBytes;
    // 16 bytes of lane t serve two products of 32 dimensions. In which order dimensions are taken does not matter, as long as
    // it is the same for rows and queries.
    uint4 low[kRowBlocks], high[kRowBlocks];
#pragma unroll
    for (unsigned r = 0; r < kRowBlocks; ++r) {
      const std::byte* row = values + lane.row(r, 0) * kChunk + 16 * lane.quad;
      low[r] = *reinterpret_cast<const uint4*>(row);
      high[r] = *reinterpret_cast<const uint4*>(row + 8 * kChunk);
    }
#pragma unroll
    for (unsigned c = 0; c < kQueryBlocks; ++c) {
      const std::byte* column = columns + (lane.first_column + 8 * c + lane.group) * kChunk + 16 * lane.quad;
      const uint4 query = *reinterpret_cast<const uint4*>(column);
#pragma unroll
      for (unsigned r = 0; r < kRowBlocks; ++r) {
        multiply_add(sums[r][c], {low[r].x, high[r].x, low[r].y, high[r].y}, {query.x, query.y});
        multiply_add(sums[r][c], {low[r].z, high[r].z, low[r].w, high[r].w}, {query.z, query.w});
      }
    }
    if (chunk + 1 != chunks) continue;
    finish(first + blockIdx.x + step / chunks * gridDim.x, sums);
#pragma unroll
    for (unsigned r = 0; r < kRowBlocks; ++r) {
#pragma unroll
      for (unsigned c = 0; c < kQueryBlocks; ++c) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) sums[r][c][i] = 0;
      }
    }
  }
  wait_copies<0>();
}

// Which costs a product stands for: those of a pair lie between these.
struct CostInterval {
  double lowest;
  double highest;
};

// Of the pair of a query and the row at a place of the packed ones, whose int8 product is `product`.
__device__ inline CostInterval cost_interval(const Problem& problem, const PackedRows& rows, const QueryState& state,
                                             std::size_t at, std::int32_t product, float tile_norm, float tile_residual) {
  const double unit = state.scale * rows.scale[at];
  const double offset = rows.offset[at];
  double middle = state.offset + offset - unit * product;
  // Cauchy-Schwarz on the residuals; 1 is for what float64 rounds in products.
  const double error = state.residual * tile_norm + state.norm * tile_residual + 1.0;
  const double bounded_limit = isinf(state.limit) ? 0.0 : fabs(state.limit);
  double radius = unit * error + state.slack + problem.rounding * (fabs(offset) + bounded_limit);
  if (isnan(middle)) {  // a zero vector under cosine: its distance is 1
    const bool zero = problem.metric == Metric::kCosine;
    middle = zero ? 1.0 : 0.0;
    radius = zero ? 0.0 : static_cast<double>(INFINITY);
  }
  // Room to round the interval outwards: fp32 rounds by at most 2^-24 of a value, and by less than 1e-44 near zero.
  const double room = radius + fabs(middle) * 0x1p-22 + 1e-44;
  return {middle - room, middle + room};
}

// What a lane's products are compared with: of the rows of its sums, in registers, and of their tile.
template <class Shape>
struct RowBounds {
  float inverse_scale[Shape::kRowBlocks][2];
  float threshold[Shape::kRowBlocks][2];
  float tile_norm;
  float tile_residual;

  __device__ RowBounds(const PackedRows& rows, std::size_t tile, const TileLane<Shape>& lane)
      : tile_norm(rows.tile_norm[tile]), tile_residual(rows.tile_residual[tile]) {
#pragma unroll
    for (unsigned r = 0; r < Shape::kRowBlocks; ++r) {
#pragma unroll
      for (unsigned half = 0; half < 2; ++half) {
        const std::size_t at = tile * kTileVectors + lane.row(r, half);
        inverse_scale[r][half] = rows.inverse_scale[at];
        threshold[r][half] = rows.threshold[at];
      }
    }
  }
};

// A query of a tile, at this place of it, and what its bound needs of a tile of rows as a whole; see QueryBound.
struct Column {
  unsigned place;
  QueryBound bound;
  float init;
};

// Bounds of the block's tile of queries, in shared memory.
template <class Shape>
struct QueryBounds {
  QueryBound queries[Shape::kQueries];

  // The caller puts a barrier behind it.
  __device__ void load(const PackedQueries& packed) {
    for (unsigned q = threadIdx.x; q < Shape::kQueries; q += kProductThreads) {
      queries[q] = packed.bounds[blockIdx.y * Shape::kQueries + q];
    }
  }

  __device__ Column column(unsigned place, const RowBounds<Shape>& rows) const {
    const QueryBound bound = queries[place];
    const float error = bound.residual * rows.tile_norm + bound.norm * rows.tile_residual;
    return {place, bound, error * (1.0f + 0x1p-20f) + kSumRoom};
  }
};

// Whether the cost of a row and a query may be below the query's limit. NaN passes.
template <class Shape>
__device__ inline bool passes(const RowBounds<Shape>& rows, unsigned r, unsigned half, const Column& query,
                              std::int32_t product) {
  const float offset = fmaf(query.bound.b, rows.threshold[r][half], -query.init);
  return !(static_cast<float>(product) < fmaf(query.bound.a, rows.inverse_scale[r][half], offset));
}

inline int multiprocessors() {
  int device = 0;
  int count = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "asking for the multiprocessors");
  return count;
}

// Launches a kernel that multiplies `row_tiles` tiles of rows with all queries; `kernel` takes one task.
template <class Shape, bool kResident, class Task>
void launch_products(void (*kernel)(Task), const Task& task, std::size_t chunks, std::size_t queries, std::size_t row_tiles,
                     cudaStream_t stream) {
  constexpr unsigned kBlocksPerProcessor = 4;  // one or two turns
  const std::size_t shared = kStages * kRowBytes + (kResident ? chunks : kStages) * Shape::kQueryBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "asking for shared memory");
  const std::size_t query_tiles = blocks_for(queries, Shape::kQueries);
  // Rounded down: of a few blocks more than run at once, the last would have the device to themselves.
  const std::size_t most = kBlocksPerProcessor * static_cast<std::size_t>(multiprocessors()) / query_tiles;
  const std::size_t wanted = std::clamp<std::size_t>(most, 1, row_tiles);
  const dim3 blocks(static_cast<unsigned>(wanted), static_cast<unsigned>(query_tiles));
  launch(kernel, blocks, kProductThreads, shared, stream, task);
}

}  // namespace iiae::cuda
