// A search goes through the tiles of a piece in rounds: the first few rows, then each time several times as many as before.
// After every round a query's limit is lowered to the k-th smallest upper bound among its candidates, which k rows prove; as
// tiles are samples of the piece, a round leaves about as many candidates as the round before it, and they fit their buffer. A
// query whose candidates did not fit is measured against all rows instead.

#include "cuda/engine.h"

#include <algorithm>
#include <stdexcept>

#include "cuda/launch.cuh"
#include "cuda/measure.cuh"
#include "cuda/pack.cuh"
#include "cuda/scan.cuh"

namespace iiae::cuda {

namespace {

constexpr std::size_t kMaxWidth = 60'000;  // int8 sums of more dimensions could overflow
constexpr std::size_t kFirstRows = 256;    // of the first round
constexpr std::size_t kLostSlots = 128;    // lost queries at a time, if their keys fit
constexpr std::size_t kLostBytes = 64 << 20;
constexpr std::size_t kMostQueries = 1 << 16;  // at a time
constexpr unsigned kThreads = 256;

std::size_t growth(std::size_t k) { return k <= 128 ? 8 : 4; }

std::size_t first_tiles(std::size_t k) { return blocks_for(std::max(2 * k, kFirstRows), kTileVectors); }

// Places for candidates: a first round, of which all rows are candidates, and several times what later ones leave.
std::size_t candidate_room(std::size_t k) { return (first_tiles(k) * kTileVectors + 6 * growth(k) * k + 255) / 256 * 256; }

// Lost queries that are measured at a time.
std::size_t lost_slots(const Search& search, std::size_t count) {
  const std::size_t bytes = (search.rows.count + search.k) * sizeof(Key);
  return std::clamp<std::size_t>(kLostBytes / bytes, 1, std::min(count, kLostSlots));
}

// Memory of one batch of queries.
struct Batch {
  double* values;
  double* sq_norms;
  PackedQueries packed;
  Candidates candidates;
  Key* keys;
  Key* scratch;
  TiledSelection selection;
  Key* lost_keys;
  Key* lost_scratch;

  Batch(const Search& search, std::size_t count, Carver& memory) {
    const Problem problem(search.metric, search.rows.dim);
    values = memory.take<double>(count * problem.dim);
    sq_norms = memory.take<double>(count);
    scratch = memory.take<Key>(count * search.k);
    if (!search.scans) {
      keys = memory.take<Key>(count * (search.rows.count + search.k));
      selection = TiledSelection(count, memory);
      return;
    }
    packed = PackedQueries(count, problem.width, memory);
    candidates.room = candidate_room(search.k);
    candidates.lowest = memory.take<float>(count * candidates.room);
    candidates.highest = memory.take<float>(count * candidates.room);
    candidates.id = memory.take<std::uint32_t>(count * candidates.room);
    candidates.count = memory.take<unsigned>(count);
    candidates.lost = memory.take<unsigned>(count);
    candidates.lost_count = memory.take<unsigned>(1);
    candidates.statistics = search.statistics;
    keys = memory.take<Key>(count * (candidates.room + search.k));
    lost_keys = memory.take<Key>(lost_slots(search, count) * (search.rows.count + search.k));
    lost_scratch = memory.take<Key>(lost_slots(search, count) * search.k);
  }
};

__global__ void reset_kernel(Candidates candidates, std::size_t count) {
  const std::size_t q = blockIdx.x * blockDim.x + threadIdx.x;
  if (q < count) candidates.count[q] = 0;
  if (q == 0) *candidates.lost_count = 0;
}

void run_batch(const Search& search, const std::byte* packed, std::size_t first, std::size_t count, std::byte* workspace,
               cudaStream_t stream) {
  Carver memory(workspace);
  const Batch batch(search, count, memory);
  const Piece piece{search.metric, search.rows, search.start};
  const CanonicalQueries queries{batch.values, batch.sq_norms, search.queries.dim};
  const Filter filter = search.filter.from(first);
  Key* const best = search.best + first * search.k;
  convert_queries(search.metric, search.queries.slice(first, first + count), batch.values, batch.sq_norms, stream);
  if (!search.scans) {
    const std::size_t stride = search.rows.count + search.k;
    measure_all(piece, queries, count, filter, batch.keys, stride, stream);
    keep_best(count, batch.keys, stride, search.rows.count, search.k, best, batch.scratch, batch.selection, stream);
    return;
  }
  const Problem problem(search.metric, search.rows.dim);
  Carver packed_memory(const_cast<std::byte*>(packed));
  const PackedRows rows(search.rows.count, problem.width, packed_memory);
  launch(reset_kernel, static_cast<unsigned>(blocks_for(count, kThreads)), kThreads, 0, stream, batch.candidates, count);
  pack_queries(problem, queries, rows, best, search.k, batch.packed, stream);
  for (std::size_t done = 0, next = first_tiles(search.k); done < rows.tiles; next *= growth(search.k)) {
    next = std::min(next, rows.tiles);
    scan(problem, rows, batch.packed, filter, search.start, batch.candidates, done, next, stream);
    tighten(problem, rows, batch.packed, batch.candidates, search.k, stream);
    done = next;
  }
  measure_candidates(piece, queries, count, batch.candidates, search.k, best, batch.keys, batch.scratch, stream);
  measure_lost(piece, queries, batch.candidates, filter, search.k, best, batch.lost_keys, batch.lost_scratch,
               lost_slots(search, count), stream);
}

__global__ void validate_kernel(Rows rows, std::size_t normed, bool any_norm, double limit, std::size_t start,
                                unsigned long long* first_bad) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * teams_in_block();
  for (std::size_t i = blockIdx.x * teams_in_block() + team_of_block(); i < rows.count; i += stride) {
    const CanonicalRow row(rows, i, Metric::kSqEuclidean);
    double square = 0.0;
    double nothing = 0.0;  // NaN if any value is not finite
    for (std::size_t j = team_lane(); j < rows.dim; j += kTeam) {
      const double value = row(j);
      if (j < normed) square += value * value;
      nothing += value * 0.0;
    }
    square = team_sum(square) + team_sum(nothing);
    const bool good = any_norm ? !isnan(square) : square <= limit;
    if (team_lane() == 0 && !good) atomicMin(first_bad, static_cast<unsigned long long>(start + i));
  }
}

}  // namespace

std::size_t packed_bytes(Metric metric, const Rows& rows) {
  Carver memory(nullptr);
  const PackedRows packed(rows.count, Problem(metric, rows.dim).width, memory);
  return memory.size();
}

void pack(Metric metric, const Rows& rows, std::byte* packed, cudaStream_t stream) {
  const Problem problem(metric, rows.dim);
  Carver memory(packed);
  pack_rows(problem, rows, PackedRows(rows.count, problem.width, memory), stream);
}

bool can_scan(Metric metric, std::size_t dim) { return Problem(metric, dim).width <= kMaxWidth; }

std::size_t workspace_bytes(const Search& search, std::size_t batch) {
  Carver memory(nullptr);
  Batch(search, std::min(batch, kMostQueries), memory);
  return memory.size();
}

void run(const Search& search, const std::byte* packed, std::byte* workspace, std::size_t workspace_size, cudaStream_t stream) {
  if (search.queries.count == 0) return;
  // The largest batch that fits; beyond a tile of queries, whole tiles.
  std::size_t batch = std::min(search.queries.count, kMostQueries);
  while (batch > 1 && workspace_bytes(search, batch) > workspace_size) batch = (batch + 1) / 2;
  if (workspace_bytes(search, batch) > workspace_size) throw std::invalid_argument("the workspace is too small for one query");
  if (batch > kTileVectors) batch = batch / kTileVectors * kTileVectors;
  for (std::size_t first = 0; first < search.queries.count; first += batch) {
    run_batch(search, packed, first, std::min(batch, search.queries.count - first), workspace, stream);
  }
}

void write(Metric metric, const Key* best, std::size_t count, float* distances, std::int64_t* indices, cudaStream_t stream) {
  if (count != 0) write_results(metric, best, count, distances, indices, stream);
}

void validate(Metric metric, const Rows& rows, std::size_t start, unsigned long long* first_bad, cudaStream_t stream) {
  const std::size_t normed = is_gaussian(metric) ? rows.dim / 2 : rows.dim;  // of a Gaussian only its mean is unbounded
  constexpr std::size_t kBlocks = 65536;
  if (rows.count == 0) return;
  const std::size_t blocks = std::min(blocks_for(rows.count, kThreads / kTeam), kBlocks);
  launch(validate_kernel, static_cast<unsigned>(blocks), kThreads, 0, stream, rows, normed, metric == Metric::kCosine,
         squared_norm_limit(metric), start, first_bad);
}

}  // namespace iiae::cuda
