// Retrieval measures of whole rankings. The canonical keys of a query and all rows lie in memory; its relevant rows are sorted,
// every other row finds by bisection before which of them it comes, and sums of those counts are the ranks.

#include <algorithm>

#include "cuda/engine.h"
#include "cuda/launch.cuh"
#include "cuda/measure.cuh"
#include "cuda/pack.cuh"
#include "cuda/packed.cuh"
#include "cuda/select.cuh"

namespace iiae::cuda {

namespace {

constexpr unsigned kThreads = 256;

struct RankingMemory {
  double* values;
  double* sq_norms;
  Key* keys;      // (count, rows)
  Key* relevant;  // (count, most_relevant)
  Key* scratch;
  unsigned* ranks;

  RankingMemory(const Evaluation& evaluation, std::size_t count, Carver& memory) {
    values = memory.take<double>(count * evaluation.queries.dim);
    sq_norms = memory.take<double>(count);
    keys = memory.take<Key>(count * evaluation.row_count);
    relevant = memory.take<Key>(count * evaluation.most_relevant);
    scratch = memory.take<Key>(count * evaluation.most_relevant);
    ranks = memory.take<unsigned>(count * evaluation.most_relevant);
  }
};

// The sum over the block's threads, which all of them get; always in the same order.
__device__ double block_sum(double value) {
  __shared__ double values[kThreads];
  values[threadIdx.x] = value;
  __syncthreads();
  for (unsigned step = kThreads / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) values[threadIdx.x] += values[threadIdx.x + step];
    __syncthreads();
  }
  const double sum = values[0];
  __syncthreads();
  return sum;
}

// In place: value i becomes the sum of values 0 to i.
__device__ void block_running_sum(unsigned* values, std::size_t n) {
  __shared__ unsigned warp_sums[kThreads / kWarp];
  __shared__ unsigned total;
  const unsigned lane = threadIdx.x % kWarp;
  const unsigned warp = threadIdx.x / kWarp;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  for (std::size_t begin = 0; begin < n; begin += kThreads) {
    const std::size_t i = begin + threadIdx.x;
    unsigned sum = i < n ? values[i] : 0;
    for (unsigned step = 1; step < kWarp; step *= 2) {
      const unsigned other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += other;
    }
    if (lane == kWarp - 1) warp_sums[warp] = sum;
    __syncthreads();
    unsigned before = total;
    for (unsigned w = 0; w < warp; ++w) before += warp_sums[w];
    if (i < n) values[i] = before + sum;
    __syncthreads();
    if (threadIdx.x == kThreads - 1) total = before + sum;
    __syncthreads();
  }
}

// One block for one query; measures as evaluate() of iiae_fast.retrieval defines them, in the order of Evaluation::measures.
__global__ void rank_kernel(Evaluation evaluation, RankingMemory memory, std::size_t first) {
  __shared__ unsigned found;
  const std::size_t q = blockIdx.x;
  const Key* const keys = memory.keys + q * evaluation.row_count;
  Key* const relevant = memory.relevant + q * evaluation.most_relevant;
  unsigned* const ranks = memory.ranks + q * evaluation.most_relevant;
  const std::int64_t label = evaluation.query_labels[first + q];
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  for (std::size_t i = threadIdx.x; i < evaluation.row_count; i += kThreads) {
    if (evaluation.row_labels[i] == label && keys[i] != kNoKey) relevant[atomicAdd(&found, 1u)] = keys[i];
  }
  __syncthreads();
  const std::size_t count = found;
  block_sort(relevant, memory.scratch + q * evaluation.most_relevant, count);
  for (std::size_t i = threadIdx.x; i < count; i += kThreads) ranks[i] = 1;  // itself
  __syncthreads();
  for (std::size_t i = threadIdx.x; i < evaluation.row_count; i += kThreads) {
    if (evaluation.row_labels[i] == label || keys[i] == kNoKey) continue;
    const std::size_t place = rank_of(relevant, count, keys[i]);
    if (place < count) atomicAdd(&ranks[place], 1u);
  }
  __syncthreads();
  block_running_sum(ranks, count);
  double* const out = evaluation.measures + (first + q) * (3 * evaluation.cutoff_count + 1);
  double all = 0.0;
  for (std::size_t i = threadIdx.x; i < count; i += kThreads) all += static_cast<double>(i + 1) / ranks[i];
  all = block_sum(all);
  const double divisor = static_cast<double>(count == 0 ? 1 : count);
  for (std::size_t c = 0; c < evaluation.cutoff_count; ++c) {
    const std::int64_t cutoff = evaluation.cutoffs[c];
    double hits = 0.0;
    double precisions = 0.0;
    for (std::size_t i = threadIdx.x; i < count && ranks[i] <= cutoff; i += kThreads) {
      hits += 1.0;
      precisions += static_cast<double>(i + 1) / ranks[i];
    }
    hits = block_sum(hits);
    precisions = block_sum(precisions);
    if (threadIdx.x != 0) continue;
    const double k = static_cast<double>(cutoff);
    out[3 * c] = hits > 0.0 ? 1.0 : 0.0;
    out[3 * c + 1] = hits / k;
    out[3 * c + 2] = precisions / fmin(divisor, k);
  }
  if (threadIdx.x == 0) out[3 * evaluation.cutoff_count] = all / divisor;
}

}  // namespace

std::size_t workspace_bytes(const Evaluation& evaluation, std::size_t batch) {
  Carver memory(nullptr);
  RankingMemory(evaluation, batch, memory);
  return memory.size();
}

void measure(const Evaluation& evaluation, const Rows& rows, std::size_t start, std::size_t first, std::size_t count,
             std::byte* workspace, cudaStream_t stream) {
  Carver carver(workspace);
  const RankingMemory memory(evaluation, count, carver);
  convert_queries(evaluation.metric, evaluation.queries.slice(first, first + count), memory.values, memory.sq_norms, stream);
  Filter filter;
  filter.ids = evaluation.excluded_ids;
  measure_all({evaluation.metric, rows, start}, {memory.values, memory.sq_norms, evaluation.queries.dim}, count,
              filter.from(first), memory.keys + start, evaluation.row_count, stream);
}

void rank(const Evaluation& evaluation, std::size_t first, std::size_t count, std::byte* workspace, cudaStream_t stream) {
  Carver carver(workspace);
  const RankingMemory memory(evaluation, count, carver);
  launch(rank_kernel, static_cast<unsigned>(count), kThreads, 0, stream, evaluation, memory, first);
}

}  // namespace iiae::cuda
