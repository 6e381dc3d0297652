// A block multiplies a tile of 128 rows with a tile of queries, 64 dimensions at a time: stages of shared memory are filled by
// asynchronous copies while the tensor cores work on an earlier one. Sums stay in registers, and are compared with the bounds
// there; products that pass are gathered by ballots into a short queue of the warp, so that all its lanes share their
// treatment.

#include "cuda/scan.cuh"

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/select.cuh"

namespace iiae::cuda {

namespace {

constexpr unsigned kWarps = 8;
constexpr unsigned kThreads = kWarps * kWarp;
constexpr unsigned kStages = 3;
constexpr unsigned kQueue = 64;  // passing products of one warp that are treated together
constexpr unsigned kTightenThreads = 128;
constexpr std::size_t kRowBytes = kTileVectors * kChunk;

// How a tile is dealt out to the 8 warps: each has 16 kRowBlocks rows and 8 kQueryBlocks queries.
struct ManyQueries {
  static constexpr unsigned kRowBlocks = 2, kQueryBlocks = 8, kRowWarps = 4;
};
struct FewQueries {
  static constexpr unsigned kRowBlocks = 1, kQueryBlocks = 1, kRowWarps = 8;
};

struct Passed {
  std::int32_t sum;
  std::uint32_t place;  // row of the tile in the lower half, query of the tile in the upper one
};

// What is in shared memory beside the stages.
struct Scratch {
  Passed passed[kWarps][kQueue];
  QueryBound bounds[kTileVectors];
  float inverse_scale[kTileVectors];
  float threshold[kTileVectors];
};

template <class Shape>
constexpr unsigned tile_queries() {
  return kWarps / Shape::kRowWarps * Shape::kQueryBlocks * 8;
}

template <class Shape>
constexpr std::size_t query_bytes() {
  return tile_queries<Shape>() * kChunk;
}

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

__device__ void copy_block(std::byte* shared, const std::int8_t* global, std::size_t bytes) {
  for (std::size_t at = 16 * threadIdx.x; at < bytes; at += 16 * kThreads) copy_async(shared + at, global + at);
}

// Turns a product that passed into a candidate, unless it is no row, filtered, or above the limit after all.
__device__ void treat(const ScanTask& task, const Passed& passed, std::size_t tile, std::size_t first_query, float tile_norm,
                      float tile_residual) {
  const std::size_t place = passed.place & 0xffffu;
  const std::size_t query = first_query + (passed.place >> 16);
  const std::size_t id = dealt_row(task.rows.tiles, tile, place);
  if (id >= task.rows.count || query >= task.queries.count) return;
  if (!task.filter.passes(query, id, task.start + id)) return;
  const QueryState& state = task.queries.states[query];
  const std::size_t at = tile * kTileVectors + place;
  const double unit = state.scale * task.rows.scale[at];
  const double offset = task.rows.offset[at];
  double middle = state.offset + offset - unit * passed.sum;
  // Cauchy-Schwarz on the residuals; 1 is for what float64 rounds in products.
  const double error = state.residual * tile_norm + state.norm * tile_residual + 1.0;
  const double bounded_limit = isinf(state.limit) ? 0.0 : fabs(state.limit);
  double radius = unit * error + state.slack + task.problem.rounding * (fabs(offset) + bounded_limit);
  if (isnan(middle)) {  // a zero vector under cosine: its distance is 1
    const bool zero = task.problem.metric == Metric::kCosine;
    middle = zero ? 1.0 : 0.0;
    radius = zero ? 0.0 : static_cast<double>(INFINITY);
  }
  // Rounds the interval outwards: fp32 rounds by at most 2^-24 of a value, and by less than 1e-44 near zero.
  const double room = radius + fabs(middle) * 0x1p-22 + 1e-44;
  const float lowest = static_cast<float>(middle - room);
  if (!(lowest <= state.limit)) return;
  const unsigned slot = atomicAdd(&task.candidates.count[query], 1u);
  if (slot >= task.candidates.room) return;
  const std::size_t to = query * task.candidates.room + slot;
  task.candidates.lowest[to] = lowest;
  task.candidates.highest[to] = static_cast<float>(middle + room);
  task.candidates.id[to] = static_cast<std::uint32_t>(id);
}

// With kResident, all chunks of the query tile stay in shared memory; else they come with each stage.
template <class Shape, bool kResident>
__global__ void __launch_bounds__(kThreads, 2) scan_kernel(ScanTask task) {
  constexpr unsigned kRowBlocks = Shape::kRowBlocks;
  constexpr unsigned kQueryBlocks = Shape::kQueryBlocks;
  __shared__ Scratch scratch;
  std::byte* const memory = dynamic_shared();
  const std::size_t chunks = task.rows.chunks;
  const std::size_t stage_bytes = kRowBytes + (kResident ? 0 : query_bytes<Shape>());
  std::byte* const stages = memory + (kResident ? chunks * query_bytes<Shape>() : 0);
  const std::size_t first_query = blockIdx.y * tile_queries<Shape>();
  // The queries of this tile lie in a wider one.
  const std::int8_t* const queries =
      task.queries.values + first_query / kTileVectors * chunks * kRowBytes + first_query % kTileVectors * kChunk;
  const unsigned lane = threadIdx.x % kWarp;
  const unsigned warp = threadIdx.x / kWarp;
  const unsigned group = lane / 4;
  const unsigned quad = lane % 4;
  const unsigned first_row = warp % Shape::kRowWarps * kRowBlocks * 16;
  const unsigned first_column = warp / Shape::kRowWarps * kQueryBlocks * 8;

  for (unsigned q = threadIdx.x; q < tile_queries<Shape>(); q += kThreads) {
    scratch.bounds[q] = task.queries.bounds[first_query + q];
  }
  if (kResident) {
    for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
      copy_block(memory + chunk * query_bytes<Shape>(), queries + chunk * kRowBytes, query_bytes<Shape>());
    }
  }
  const std::size_t tiles = task.last - task.first;
  const std::size_t own_tiles = blockIdx.x < tiles ? (tiles - blockIdx.x + gridDim.x - 1) / gridDim.x : 0;
  const std::size_t steps = own_tiles * chunks;
  const auto fill = [&](std::size_t step) {
    if (step < steps) {
      const std::size_t tile = task.first + blockIdx.x + step / chunks * gridDim.x;
      const std::size_t chunk = step % chunks;
      std::byte* const stage = stages + step % kStages * stage_bytes;
      copy_block(stage, task.rows.values + (tile * chunks + chunk) * kRowBytes, kRowBytes);
      if (!kResident) copy_block(stage + kRowBytes, queries + chunk * kRowBytes, query_bytes<Shape>());
    }
    close_copies();  // an empty group too, so that groups can be counted
  };
  for (unsigned stage = 0; stage < kStages - 1; ++stage) fill(stage);

  std::int32_t sum[kRowBlocks][kQueryBlocks][4] = {};
  for (std::size_t step = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    __syncthreads();  // what this step reads has come, and nobody reads what is filled next
    fill(step + kStages - 1);
    const std::size_t chunk = step % chunks;
    const std::byte* const rows = stages + step % kStages * stage_bytes;
    const std::byte* const columns = kResident ? memory + chunk * query_bytes<Shape>() : rows + kRowBytes;
    // 16 bytes of lane t serve two products of 32 dimensions. In which order dimensions are taken does not matter, as long as
    // it is the same for rows and queries.
    uint4 low[kRowBlocks], high[kRowBlocks];
#pragma unroll
    for (unsigned r = 0; r < kRowBlocks; ++r) {
      const std::byte* row = rows + (first_row + 16 * r + group) * kChunk + 16 * quad;
      low[r] = *reinterpret_cast<const uint4*>(row);
      high[r] = *reinterpret_cast<const uint4*>(row + 8 * kChunk);
    }
#pragma unroll
    for (unsigned c = 0; c < kQueryBlocks; ++c) {
      const uint4 query = *reinterpret_cast<const uint4*>(columns + (first_column + 8 * c + group) * kChunk + 16 * quad);
#pragma unroll
      for (unsigned r = 0; r < kRowBlocks; ++r) {
        multiply_add(sum[r][c], {low[r].x, high[r].x, low[r].y, high[r].y}, {query.x, query.y});
        multiply_add(sum[r][c], {low[r].z, high[r].z, low[r].w, high[r].w}, {query.z, query.w});
      }
    }
    if (chunk + 1 != chunks) continue;

    const std::size_t tile = task.first + blockIdx.x + step / chunks * gridDim.x;
    const float tile_norm = task.rows.tile_norm[tile];
    const float tile_residual = task.rows.tile_residual[tile];
    if (threadIdx.x < kTileVectors) {
      scratch.inverse_scale[threadIdx.x] = task.rows.inverse_scale[tile * kTileVectors + threadIdx.x];
      scratch.threshold[threadIdx.x] = task.rows.threshold[tile * kTileVectors + threadIdx.x];
    }
    __syncthreads();
    // Sweeps until all that passed has been in the queue; nearly always one is enough.
    for (unsigned done = 0;; done += kQueue) {
      unsigned seen = 0;
#pragma unroll
      for (unsigned c = 0; c < kQueryBlocks; ++c) {
#pragma unroll
        for (unsigned side = 0; side < 2; ++side) {
          const unsigned column = first_column + 8 * c + 2 * quad + side;
          const QueryBound bound = scratch.bounds[column];
          const float init = (bound.residual * tile_norm + bound.norm * tile_residual) * (1.0f + 0x1p-20f) + kSumRoom;
#pragma unroll
          for (unsigned r = 0; r < kRowBlocks; ++r) {
#pragma unroll
            for (unsigned half = 0; half < 2; ++half) {
              const unsigned row = first_row + 16 * r + 8 * half + group;
              const std::int32_t product = sum[r][c][2 * half + side];
              const float least = fmaf(bound.a, scratch.inverse_scale[row], fmaf(bound.b, scratch.threshold[row], -init));
              const bool passes = !(static_cast<float>(product) < least);  // NaN passes
              const unsigned passing = __ballot_sync(kAllLanes, passes);
              if (passing == 0) continue;
              const unsigned at = seen + __popc(passing & ((1u << lane) - 1u)) - done;
              if (passes && at < kQueue) scratch.passed[warp][at] = {product, row | column << 16};
              seen += __popc(passing);
            }
          }
        }
      }
      __syncwarp();
      const unsigned waiting = seen > done ? seen - done : 0;
      for (unsigned i = lane; i < waiting && i < kQueue; i += kWarp) {
        treat(task, scratch.passed[warp][i], tile, first_query, tile_norm, tile_residual);
      }
      __syncwarp();
      if (waiting <= kQueue) break;
    }
#pragma unroll
    for (unsigned r = 0; r < kRowBlocks; ++r) {
#pragma unroll
      for (unsigned c = 0; c < kQueryBlocks; ++c) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) sum[r][c][i] = 0;
      }
    }
  }
  wait_copies<0>();
}

// One block for one query.
__global__ void tighten_kernel(Problem problem, PackedRows rows, PackedQueries queries, Candidates candidates, std::size_t k) {
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

int multiprocessors() {
  int device = 0;
  int count = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "asking for the multiprocessors");
  return count;
}

template <class Shape, bool kResident>
void launch_scan(const ScanTask& task, cudaStream_t stream) {
  constexpr unsigned kBlocksPerProcessor = 4;
  const std::size_t shared = kStages * kRowBytes + (kResident ? task.rows.chunks : kStages) * query_bytes<Shape>();
  check(cudaFuncSetAttribute(scan_kernel<Shape, kResident>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        "asking for shared memory");
  const std::size_t query_tiles = blocks_for(task.queries.count, tile_queries<Shape>());
  const std::size_t wanted = blocks_for(kBlocksPerProcessor * static_cast<std::size_t>(multiprocessors()), query_tiles);
  const std::size_t tiles = task.last - task.first;
  const dim3 blocks(static_cast<unsigned>(wanted < tiles ? wanted : tiles), static_cast<unsigned>(query_tiles));
  launch(scan_kernel<Shape, kResident>, blocks, kThreads, shared, stream, task);
}

}  // namespace

void scan(const Problem& problem, const PackedRows& rows, const PackedQueries& queries, const Filter& filter, std::size_t start,
          const Candidates& candidates, std::size_t first, std::size_t last, cudaStream_t stream) {
  constexpr std::size_t kResidentChunks = 4;
  const ScanTask task{problem, rows, queries, filter, start, candidates, first, last};
  const bool resident = rows.chunks <= kResidentChunks;
  if (queries.count <= tile_queries<FewQueries>()) {
    resident ? launch_scan<FewQueries, true>(task, stream) : launch_scan<FewQueries, false>(task, stream);
  } else {
    resident ? launch_scan<ManyQueries, true>(task, stream) : launch_scan<ManyQueries, false>(task, stream);
  }
}

void tighten(const Problem& problem, const PackedRows& rows, const PackedQueries& queries, const Candidates& candidates,
             std::size_t k, cudaStream_t stream) {
  launch(tighten_kernel, static_cast<unsigned>(queries.count), kTightenThreads, 0, stream, problem, rows, queries, candidates,
         k);
}

}  // namespace iiae::cuda
