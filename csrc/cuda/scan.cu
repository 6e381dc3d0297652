// Products that pass a query's bound are gathered by ballots into a short queue of the warp, so that all its lanes share their
// treatment.

#include "cuda/scan.cuh"

#include "cuda/launch.cuh"
#include "cuda/products.cuh"
#include "cuda/select.cuh"

namespace iiae::cuda {

namespace {

constexpr unsigned kQueue = 64;  // passing products of one warp that are treated together

using ManyQueries = TileShape<2, 8, 4>;
using FewQueries = TileShape<1, 1, 8>;

struct Passed {
  std::int32_t product;
  std::uint32_t place;  // row of the tile in the lower half, query of the tile in the upper one
};

struct ScanTask {
  Problem problem;
  PackedRows rows;
  PackedQueries queries;
  Filter filter;
  std::size_t start;
  Candidates candidates;
  std::size_t first;
  std::size_t last;
};

// Turns a product that passed into a candidate, unless it is no row, filtered, or above the limit after all.
__device__ void treat(const ScanTask& task, const Passed& passed, std::size_t tile, std::size_t first_query, float tile_norm,
                      float tile_residual) {
  const std::size_t place = passed.place & 0xffffu;
  const std::size_t query = first_query + (passed.place >> 16);
  const std::size_t id = dealt_row(task.rows.tiles, tile, place);
  if (id >= task.rows.count || query >= task.queries.count) return;
  if (!task.filter.passes(query, id, task.start + id)) return;
  const QueryState& state = task.queries.states[query];
  const CostInterval cost =
      cost_interval(task.problem, task.rows, state, tile * kTileVectors + place, passed.product, tile_norm, tile_residual);
  const float lowest = static_cast<float>(cost.lowest);
  if (!(lowest <= state.limit)) return;
  const unsigned slot = atomicAdd(&task.candidates.count[query], 1u);
  if (slot >= task.candidates.room) return;
  const std::size_t to = query * task.candidates.room + slot;
  task.candidates.lowest[to] = lowest;
  task.candidates.highest[to] = static_cast<float>(cost.highest);
  task.candidates.id[to] = static_cast<std::uint32_t>(id);
}

template <class Shape, bool kResident>
__global__ void __launch_bounds__(kProductThreads, Shape::kBlocksAtOnce) scan_kernel(ScanTask task) {
  __shared__ Passed queue[kProductWarps][kQueue];
  __shared__ QueryBounds<Shape> bounds;
  const TileLane<Shape> own;
  const unsigned lane = threadIdx.x % kWarp;
  Passed* const passed = queue[threadIdx.x / kWarp];
  bounds.load(task.queries);
  const auto finish = [&](std::size_t tile, const typename Shape::Sums& sums) {
    const RowBounds<Shape> rows(task.rows, tile, own);
    // Sweeps until all that passed has been in the queue; nearly always one is enough.
    for (unsigned done = 0;; done += kQueue) {
      unsigned seen = 0;
#pragma unroll
      for (unsigned c = 0; c < Shape::kQueryBlocks; ++c) {
#pragma unroll
        for (unsigned side = 0; side < 2; ++side) {
          const Column column = bounds.column(own.column(c, side), rows);
          // Nearly always none of the warp's passes: one vote on all of them, and not one on each.
          bool any = false;
#pragma unroll
          for (unsigned r = 0; r < Shape::kRowBlocks; ++r) {
#pragma unroll
            for (unsigned half = 0; half < 2; ++half) {
              any |= passes(rows, r, half, column, sums[r][c][2 * half + side]);
            }
          }
          if (!__any_sync(kAllLanes, any)) continue;
#pragma unroll
          for (unsigned r = 0; r < Shape::kRowBlocks; ++r) {
#pragma unroll
            for (unsigned half = 0; half < 2; ++half) {
              const std::int32_t product = sums[r][c][2 * half + side];
              const bool may = passes(rows, r, half, column, product);
              const unsigned passing = __ballot_sync(kAllLanes, may);
              if (passing == 0) continue;
              const unsigned at = seen + __popc(passing & ((1u << lane) - 1u)) - done;
              if (may && at < kQueue) passed[at] = {product, own.row(r, half) | column.place << 16};
              seen += __popc(passing);
            }
          }
        }
      }
      __syncwarp();
      const unsigned waiting = seen > done ? seen - done : 0;
      for (unsigned i = lane; i < waiting && i < kQueue; i += kWarp) {
        treat(task, passed[i], tile, blockIdx.y * Shape::kQueries, rows.tile_norm, rows.tile_residual);
      }
      __syncwarp();
      if (waiting <= kQueue) break;
    }
  };
  multiply_tiles<Shape, kResident>(task.rows, task.queries.values, task.first, task.last, finish);
}

// One block for one query.
__global__ void __launch_bounds__(kMostThreads)
    tighten_kernel(Problem problem, PackedRows rows, PackedQueries queries, Candidates candidates, std::size_t k) {
  const std::size_t q = blockIdx.x;
  QueryState& state = queries.states[q];
  const std::size_t count = candidates.count[q];
  if (state.limit == -INFINITY) return;  // lost already
  if (count > candidates.room) {
    if (threadIdx.x == 0) {
      candidates.lost[atomicAdd(candidates.lost_count, 1u)] = static_cast<unsigned>(q);
      queries.bounds[q].a = INFINITY;
      state.limit = -INFINITY;
    }
    return;
  }
  float* const lowest = candidates.lowest + q * candidates.room;
  float* const highest = candidates.highest + q * candidates.room;
  std::uint32_t* const id = candidates.id + q * candidates.room;
  double limit = state.limit;
  if (count >= k) {
    const std::uint32_t bits = block_select<std::uint32_t>(count, k, [&](std::size_t i) { return order_bits(highest[i]); });
    limit = fmin(limit, with_ties(key_distance(Metric::kSqEuclidean, static_cast<Key>(bits) << 32)));
  }
  // A thread keeps its candidate in registers until all of its round have been read, so that places can be filled from the
  // front.
  __shared__ unsigned kept;
  if (threadIdx.x == 0) kept = 0;
  for (std::size_t begin = 0; begin < count; begin += blockDim.x) {
    const std::size_t i = begin + threadIdx.x;
    const bool keep = i < count && lowest[i] <= limit;
    const float low = keep ? lowest[i] : 0.0f;
    const float high = keep ? highest[i] : 0.0f;
    const std::uint32_t row = keep ? id[i] : 0;
    __syncthreads();
    if (keep) {
      const unsigned to = atomicAdd(&kept, 1u);
      lowest[to] = low;
      highest[to] = high;
      id[to] = row;
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  candidates.count[q] = count == 0 ? 0 : kept;
  state.limit = limit;
  queries.bounds[q] = bound_of(problem, state, *rows.units);
}

template <class Shape>
void launch_scan(const ScanTask& task, cudaStream_t stream) {
  const std::size_t chunks = task.rows.chunks;
  const std::size_t tiles = task.last - task.first;
  if (chunks <= kResidentChunks) {
    launch_products<Shape, true>(scan_kernel<Shape, true>, task, chunks, task.queries.count, tiles, stream);
  } else {
    launch_products<Shape, false>(scan_kernel<Shape, false>, task, chunks, task.queries.count, tiles, stream);
  }
}

}  // namespace

void scan(const Problem& problem, const PackedRows& rows, const PackedQueries& queries, const Filter& filter, std::size_t start,
          const Candidates& candidates, std::size_t first, std::size_t last, cudaStream_t stream) {
  const ScanTask task{problem, rows, queries, filter, start, candidates, first, last};
  if (queries.count <= FewQueries::kQueries) {
    launch_scan<FewQueries>(task, stream);
  } else {
    launch_scan<ManyQueries>(task, stream);
  }
}

void tighten(const Problem& problem, const PackedRows& rows, const PackedQueries& queries, const Candidates& candidates,
             std::size_t k, cudaStream_t stream) {
  launch(tighten_kernel, static_cast<unsigned>(queries.count), threads_for_query(k), 0, stream, problem, rows, queries,
         candidates, k);
}

}  // namespace iiae::cuda
