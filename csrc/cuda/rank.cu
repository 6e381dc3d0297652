// Retrieval measures of whole rankings. A query's relevant rows are measured and sorted; all other rows only say which of them
// they come before, and sums of those counts are the ranks.

#include <algorithm>
#include <cfloat>

#include "cuda/count.cuh"
#include "cuda/engine.h"
#include "cuda/launch.cuh"
#include "cuda/measure.cuh"
#include "cuda/pack.cuh"
#include "cuda/packed.cuh"
#include "cuda/problem.cuh"
#include "cuda/relevant.cuh"
#include "cuda/select.cuh"

namespace iiae::cuda {

namespace {

constexpr unsigned kThreads = 256;

// Memory of a batch of queries; `scanned` rows at most are scanned at a time.
struct RankingMemory {
  double* values;
  double* sq_norms;
  RelevantRows relevant;
  PackedQueries packed{};
  std::uint32_t* marks = nullptr;

  RankingMemory(const Evaluation& evaluation, std::size_t count, Carver& memory)
      : values(memory.take<double>(count * evaluation.queries.dim)),
        sq_norms(memory.take<double>(count)),
        relevant(count, evaluation.most_relevant, memory) {
    if (evaluation.most_scanned == 0) return;
    packed = PackedQueries(count, Problem(evaluation.metric, evaluation.queries.dim).width, memory);
    marks = memory.take<std::uint32_t>(count * mark_words(evaluation.most_scanned));
  }

  CanonicalQueries queries(const Evaluation& evaluation) const { return {values, sq_norms, evaluation.queries.dim}; }
};

RankingMemory memory_of(const Evaluation& evaluation, std::size_t count, std::byte* workspace) {
  Carver carver(workspace);
  return RankingMemory(evaluation, count, carver);
}

Labels labels_of(const Evaluation& evaluation, std::size_t start, std::size_t first) {
  return {evaluation.query_labels + first, evaluation.row_labels + start,
          evaluation.excluded_ids ? evaluation.excluded_ids + first : nullptr};
}

__global__ void start_ranking_kernel(std::size_t count, RelevantRows relevant, std::uint32_t* marks, std::size_t words) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  const std::size_t first = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x;
  for (std::size_t i = first; i < count; i += step) relevant.found[i] = 0;
  for (std::size_t i = first; i < count * words; i += step) marks[i] = 0;
}

// Measures the relevant rows of the piece; one block for one query.
__global__ void collect_kernel(Piece piece, CanonicalQueries queries, Labels labels, const std::int64_t* by_label,
                               const std::int64_t* label_starts, RelevantRows relevant) {
  const unsigned q = blockIdx.x;
  const std::int64_t label = labels.of_queries[q];
  for (std::int64_t i = label_starts[label] + team_of_block(); i < label_starts[label + 1]; i += teams_in_block()) {
    const std::size_t index = static_cast<std::size_t>(by_label[i]);
    if (index < piece.start || index - piece.start >= piece.rows.count) continue;
    if (labels.excluded_ids && labels.excluded_ids[q] == by_label[i]) continue;
    const CanonicalRow row(piece.rows, index - piece.start, piece.metric);
    double distance[1];
    canonical_distances<1>(piece.metric, queries, {q}, row, distance);
    if (team_lane() != 0) continue;
    relevant.keys[q * relevant.room + atomicAdd(&relevant.found[q], 1u)] = make_key(piece.metric, distance[0], index);
  }
}

// Makes the relevant rows ready for counting; one block for one query.
__global__ void sort_kernel(Metric metric, RelevantRows relevant) {
  const std::size_t q = blockIdx.x;
  const std::size_t first = q * relevant.room;
  const std::size_t n = relevant.found[q];
  block_sort(relevant.keys + first, relevant.scratch + first, n);
  for (std::size_t i = threadIdx.x; i < n; i += blockDim.x) {
    const float distance = key_distance(metric, relevant.keys[first + i]);
    relevant.lowest[first + i] = lowest_cost(metric, distance);
    relevant.highest[first + i] = highest_cost(metric, distance);
    relevant.ahead[first + i] = 1;
  }
  // Nothing comes before no row: a low cost keeps the scan from looking.
  const Key nothing = make_key(metric, metric == Metric::kInnerProduct ? FLT_MAX : 0.0, 0);
  if (threadIdx.x == 0) relevant.last[q] = n == 0 ? nothing : relevant.keys[first + n - 1];
}

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
__global__ void rank_kernel(Evaluation evaluation, RelevantRows relevant, std::size_t first) {
  const std::size_t q = blockIdx.x;
  const std::size_t count = relevant.found[q];
  unsigned* const ranks = relevant.ahead + q * relevant.room;
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

void start(const Evaluation& evaluation, std::size_t first, std::size_t count, std::byte* workspace, cudaStream_t stream) {
  constexpr std::size_t kBlocks = 1024;
  const RankingMemory memory = memory_of(evaluation, count, workspace);
  const std::size_t words = mark_words(evaluation.most_scanned);
  convert_queries(evaluation.metric, evaluation.queries.slice(first, first + count), memory.values, memory.sq_norms, stream);
  const std::size_t wanted = blocks_for(count * std::max<std::size_t>(words, 1), kThreads);
  launch(start_ranking_kernel, static_cast<unsigned>(std::min(wanted, kBlocks)), kThreads, 0, stream, count, memory.relevant,
         memory.marks, words);
}

void collect(const Evaluation& evaluation, const Rows& rows, std::size_t start, std::size_t first, std::size_t count,
             std::byte* workspace, cudaStream_t stream) {
  const RankingMemory memory = memory_of(evaluation, count, workspace);
  launch(collect_kernel, static_cast<unsigned>(count), kThreads, 0, stream, Piece{evaluation.metric, rows, start},
         memory.queries(evaluation), labels_of(evaluation, start, first), evaluation.rows_by_label, evaluation.label_starts,
         memory.relevant);
}

void sort(const Evaluation& evaluation, std::size_t count, std::byte* workspace, cudaStream_t stream) {
  const RankingMemory memory = memory_of(evaluation, count, workspace);
  launch(sort_kernel, static_cast<unsigned>(count), kThreads, 0, stream, evaluation.metric, memory.relevant);
}

void count(const Evaluation& evaluation, const Rows& rows, std::size_t start, const std::byte* packed, std::size_t first,
           std::size_t count, std::byte* workspace, cudaStream_t stream) {
  const RankingMemory memory = memory_of(evaluation, count, workspace);
  const Piece piece{evaluation.metric, rows, start};
  const CanonicalQueries queries = memory.queries(evaluation);
  const Labels labels = labels_of(evaluation, start, first);
  if (!packed) {
    count_all(piece, queries, count, labels, memory.relevant, stream);
    return;
  }
  const Problem problem(evaluation.metric, rows.dim);
  Carver carver(const_cast<std::byte*>(packed));
  const PackedRows packed_rows(rows.count, problem.width, carver);
  pack_queries(problem, queries, packed_rows, memory.relevant.last, 1, memory.packed, stream);
  count_by_scan(problem, piece, packed_rows, queries, memory.packed, labels, memory.relevant, memory.marks,
                evaluation.statistics, stream);
}

void rank(const Evaluation& evaluation, std::size_t first, std::size_t count, std::byte* workspace, cudaStream_t stream) {
  const RankingMemory memory = memory_of(evaluation, count, workspace);
  launch(rank_kernel, static_cast<unsigned>(count), kThreads, 0, stream, evaluation, memory.relevant, first);
}

}  // namespace iiae::cuda
