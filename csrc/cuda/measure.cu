#include "cuda/measure.cuh"

#include "cuda/launch.cuh"
#include "cuda/select.cuh"

namespace iiae::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr int kQueriesAtOnce = 4;  // that share one conversion of a row to float64
constexpr std::size_t kRowsPerBlock = 512;
constexpr std::size_t kFusedChoice = 1024;   // more keys are selected by many blocks
constexpr std::size_t kFusedKeys = 1 << 15;  // and so are any from more than these,
constexpr std::size_t kManyQueries = 256;    // unless so many queries keep the device busy

// Keys of rows [begin, end) for kQueries queries, the last of them possibly repeated: those from `used` on are not written.
template <int kQueries>
__device__ void measure_rows(const Piece& piece, const CanonicalQueries& queries, const unsigned (&which)[kQueries], int used,
                             const Filter& filter, std::size_t begin, std::size_t end, Key* const (&keys)[kQueries]) {
  const auto write = [&](int c, std::size_t i, double distance) {
    const bool passes = filter.passes(which[c], i, piece.start + i);
    keys[c][i] = passes ? make_key(piece.metric, distance, piece.start + i) : kNoKey;
  };
  for_each_distance<kQueries>(piece.rows, piece.metric, queries, which, used, begin, end, write);
}

__global__ void measure_all_kernel(Piece piece, CanonicalQueries queries, std::size_t count, Filter filter, Key* keys,
                                   std::size_t stride) {
  const std::size_t begin = blockIdx.x * kRowsPerBlock;
  const std::size_t end = begin + kRowsPerBlock < piece.rows.count ? begin + kRowsPerBlock : piece.rows.count;
  for (std::size_t first = blockIdx.y * kQueriesAtOnce; first < count; first += gridDim.y * kQueriesAtOnce) {
    unsigned which[kQueriesAtOnce];
    Key* out[kQueriesAtOnce];
    const std::size_t left = count - first;
#pragma unroll
    for (int c = 0; c < kQueriesAtOnce; ++c) {
      const std::size_t q = first + (static_cast<std::size_t>(c) < left ? c : left - 1);
      which[c] = static_cast<unsigned>(q);
      out[c] = keys + q * stride;
    }
    const int used = left < kQueriesAtOnce ? static_cast<int>(left) : kQueriesAtOnce;
    measure_rows<kQueriesAtOnce>(piece, queries, which, used, filter, begin, end, out);
  }
}

// best = the k best of best and of n keys, behind which there is room for k more. By a whole block.
__device__ void keep(Key* keys, std::size_t n, std::size_t k, Key* best, Key* scratch) {
  if (best[0] != kNoKey) {
    for (std::size_t i = threadIdx.x; i < k; i += blockDim.x) keys[n + i] = best[i];
    n += k;
  }
  __syncthreads();
  block_select_keys(keys, n, k, best, scratch);
}

__global__ void keep_best_kernel(Key* keys, std::size_t stride, std::size_t n, std::size_t k, Key* best, Key* scratch) {
  const std::size_t q = blockIdx.x;
  keep(keys + q * stride, n, k, best + q * k, scratch + q * k);
}

__global__ void __launch_bounds__(kMostThreads)
    measure_candidates_kernel(Piece piece, CanonicalQueries queries, Candidates candidates, std::size_t k, Key* best, Key* keys,
                              Key* scratch) {
  const unsigned q = blockIdx.x;
  const std::size_t count = candidates.count[q];
  if (count > candidates.room) return;  // lost
  if (candidates.statistics && threadIdx.x == 0) {
    atomicAdd(&candidates.statistics[0], static_cast<unsigned long long>(count));
  }
  const std::uint32_t* const id = candidates.id + q * candidates.room;
  Key* const own = keys + q * (candidates.room + k);
  for (std::size_t i = team_of_block(); i < count; i += teams_in_block()) {
    const CanonicalRow row(piece.rows, id[i], piece.metric);
    double distance[1];
    canonical_distances<1>(piece.metric, queries, {q}, row, distance);
    if (team_lane() == 0) own[i] = make_key(piece.metric, distance[0], piece.start + id[i]);
  }
  __syncthreads();
  keep(own, count, k, best + q * k, scratch + q * k);
}

__global__ void measure_lost_kernel(Piece piece, CanonicalQueries queries, Candidates candidates, Filter filter, std::size_t k,
                                    Key* best, Key* keys, Key* scratch) {
  Key* const own = keys + blockIdx.x * (piece.rows.count + k);
  const unsigned lost = *candidates.lost_count;
  if (candidates.statistics && blockIdx.x == 0 && threadIdx.x == 0) {
    atomicAdd(&candidates.statistics[1], static_cast<unsigned long long>(lost));
  }
  for (unsigned i = blockIdx.x; i < lost; i += gridDim.x) {
    const unsigned q = candidates.lost[i];
    measure_rows<1>(piece, queries, {q}, 1, filter, 0, piece.rows.count, {own});
    __syncthreads();
    keep(own, piece.rows.count, k, best + q * k, scratch + blockIdx.x * k);
  }
}

__global__ void write_results_kernel(Metric metric, const Key* best, std::size_t count, float* distances,
                                     std::int64_t* indices) {
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    const Key key = best[i];
    const bool there = key != kNoKey;
    distances[i] = there ? key_distance(metric, key) : metric == Metric::kInnerProduct ? -INFINITY : INFINITY;
    indices[i] = there ? static_cast<std::int64_t>(key & 0xffffffffu) : -1;
  }
}

}  // namespace

void measure_all(const Piece& piece, const CanonicalQueries& queries, std::size_t count, const Filter& filter, Key* keys,
                 std::size_t stride, cudaStream_t stream) {
  const std::size_t groups = blocks_for(count, kQueriesAtOnce);
  const dim3 blocks(static_cast<unsigned>(blocks_for(piece.rows.count, kRowsPerBlock)),
                    groups < kMostGridRows ? static_cast<unsigned>(groups) : kMostGridRows);
  launch(measure_all_kernel, blocks, kThreads, 0, stream, piece, queries, count, filter, keys, stride);
}

void keep_best(std::size_t count, Key* keys, std::size_t stride, std::size_t n, std::size_t k, Key* best, Key* scratch,
               const TiledSelection& selection, cudaStream_t stream) {
  if (k > kFusedChoice || (n > kFusedKeys && count < kManyQueries)) {
    keep_best_tiled(count, keys, stride, n, k, best, scratch, selection, stream);
    return;
  }
  launch(keep_best_kernel, static_cast<unsigned>(count), kThreads, 0, stream, keys, stride, n, k, best, scratch);
}

void measure_candidates(const Piece& piece, const CanonicalQueries& queries, std::size_t count, const Candidates& candidates,
                        std::size_t k, Key* best, Key* keys, Key* scratch, cudaStream_t stream) {
  launch(measure_candidates_kernel, static_cast<unsigned>(count), threads_for_query(k), 0, stream, piece, queries, candidates,
         k, best, keys, scratch);
}

void measure_lost(const Piece& piece, const CanonicalQueries& queries, const Candidates& candidates, const Filter& filter,
                  std::size_t k, Key* best, Key* keys, Key* scratch, std::size_t slots, cudaStream_t stream) {
  launch(measure_lost_kernel, static_cast<unsigned>(slots), kThreads, 0, stream, piece, queries, candidates, filter, k, best,
         keys, scratch);
}

void write_results(Metric metric, const Key* best, std::size_t count, float* distances, std::int64_t* indices,
                   cudaStream_t stream) {
  constexpr std::size_t kBlocks = 4096;
  const std::size_t wanted = blocks_for(count, kThreads);
  launch(write_results_kernel, static_cast<unsigned>(wanted < kBlocks ? wanted : kBlocks), kThreads, 0, stream, metric, best,
         count, distances, indices);
}

}  // namespace iiae::cuda
