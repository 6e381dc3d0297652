#include "cuda/pack.cuh"

#include "cuda/launch.cuh"

namespace iiae::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr std::size_t kCentreRows = 512;
constexpr unsigned kCentreColumns = 32;
// Smaller scales than this would lose float64 precision; nothing that short is told from zero.
constexpr double kLeastScale = 1e-280;
constexpr double kLargestFactor = 1e30;
constexpr double kFloatRoom = 0x1p-20;

struct Quantized {
  double scale;     // a
  double norm;      // |P|, rounded up
  double residual;  // |E|, rounded up
};

// Writes round(vector / a) of one vector, which value(i) gives, into its place of a tile. Every lane of the team gets the
// result.
template <class Value>
__device__ Quantized quantize(std::size_t width, std::size_t chunks, double norm, double largest, double least_scale,
                              Value value, std::int8_t* out) {
  const double scale = fmax(largest / 127.0, least_scale);
  const double inverse = 1.0 / scale;
  double square = 0.0;
  for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
    std::uint32_t word = 0;
    for (unsigned byte = 0; byte < 4; ++byte) {
      const std::size_t i = chunk * kChunk + 4 * team_lane() + byte;
      if (i >= width) break;
      const double exact = value(i) * inverse;
      const double rounded = rint(exact);
      square += (exact - rounded) * (exact - rounded);
      word |= (static_cast<std::uint32_t>(static_cast<std::int32_t>(rounded)) & 0xffu) << (8 * byte);
    }
    reinterpret_cast<std::uint32_t*>(out + chunk * kTileVectors * kChunk)[team_lane()] = word;
  }
  // 1e-9 of the norm covers every float64 rounding on the way here, for up to a million dimensions; |P| <= |vector|/a + |E|.
  const double exact_norm = norm * inverse;
  const double residual = sqrt(team_sum(square)) + 1e-9 * (exact_norm + 1.0);
  return {scale, (exact_norm + residual) * (1.0 + 1e-9), residual};
}

// Of the vector that value(i) gives: its squared norm, and its largest magnitude.
template <class Value>
__device__ void measure_vector(std::size_t width, Value value, double& square, double& largest) {
  square = largest = 0.0;
  for (std::size_t i = team_lane(); i < width; i += kTeam) {
    const double v = value(i);
    square += v * v;
    largest = fmax(largest, fabs(v));
  }
  square = team_sum(square);
  largest = team_max(largest);
}

__device__ std::size_t sampled_row(std::size_t i, std::size_t samples, std::size_t rows) { return i * rows / samples; }

// What lifts a sampled row: 1 / |row| for cosine (0 leaves a zero vector out), else 1.
__global__ void sample_factors_kernel(Problem problem, Rows rows, std::size_t samples, PackedRows packed) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *packed.units = Units{};
  const std::size_t i = blockIdx.x * static_cast<std::size_t>(teams_in_block()) + team_of_block();
  if (i >= samples) return;
  double factor = 1.0;
  if (problem.metric == Metric::kCosine) {
    const CanonicalRow row(rows, sampled_row(i, samples, rows.count), problem.metric);
    const double sq_norm = canonical_sq_norm(problem.metric, problem.dim, row);
    factor = sq_norm > 0.0 ? 1.0 / sqrt(sq_norm) : 0.0;
  }
  if (team_lane() == 0) packed.sample_factor[i] = factor;
}

// The mean of the sampled rows' lifted vectors. A block has 32 columns; 8 threads share one.
__global__ void centre_kernel(Problem problem, Rows rows, std::size_t samples, PackedRows packed) {
  constexpr unsigned kShare = kThreads / kCentreColumns;
  __shared__ double sums[kShare][kCentreColumns];
  const unsigned part = threadIdx.x / kCentreColumns;
  const std::size_t column = blockIdx.x * kCentreColumns + threadIdx.x % kCentreColumns;
  double sum = 0.0;
  std::size_t used = 0;
  for (std::size_t i = 0; i < samples; ++i) {
    const double factor = packed.sample_factor[i];
    if (factor == 0.0) continue;
    ++used;
    if (i % kShare != part || column >= problem.width) continue;
    // float64 rows under cosine are not scaled here, which costs precision of the centre at the ends of their range only.
    const std::byte* row = rows.row(sampled_row(i, samples, rows.count));
    const auto value = [&](std::size_t j) { return value_at(row, rows.dtype, j); };
    const double lifted = lifted_row_value(problem, value, factor, column);
    if (isfinite(lifted)) sum += lifted;
  }
  sums[part][threadIdx.x % kCentreColumns] = sum;
  __syncthreads();
  if (part != 0 || column >= problem.width) return;
  for (unsigned other = 1; other < kShare; ++other) sum += sums[other][threadIdx.x];
  packed.centre[column] = used == 0 ? 0.0 : sum / static_cast<double>(used);
}

__global__ void centre_norm_kernel(Problem problem, PackedRows packed) {
  double square;
  double largest;
  measure_vector(problem.width, [&](std::size_t i) { return packed.centre[i]; }, square, largest);
  if (threadIdx.x == 0) packed.units->centre_norm = sqrt(square);
}

__device__ void raise(unsigned long long* unit, double value) {
  atomicMax(unit, static_cast<unsigned long long>(__double_as_longlong(value)));
}

// Maxima over rows of a tile.
struct TileMaxima {
  double norm;
  double residual;
  double unit_scale;
  double unit_norm;
  double unit_offset;

  __device__ void add(const TileMaxima& other) {
    norm = fmax(norm, other.norm);
    residual = fmax(residual, other.residual);
    unit_scale = fmax(unit_scale, other.unit_scale);
    unit_norm = fmax(unit_norm, other.unit_norm);
    unit_offset = fmax(unit_offset, other.unit_offset);
  }
};

// One block packs one tile.
__global__ void pack_rows_kernel(Problem problem, Rows rows, PackedRows packed) {
  __shared__ TileMaxima maxima[kThreads / kTeam];
  const std::size_t tile = blockIdx.x;
  TileMaxima own{};
  for (std::size_t place = team_of_block(); place < kTileVectors; place += teams_in_block()) {
    const std::size_t id = dealt_row(packed.tiles, tile, place);
    std::int8_t* out = packed.values + (tile * packed.chunks * kTileVectors + place) * kChunk;
    double scale = 0.0;
    double offset = 0.0;
    if (id < rows.count) {
      const CanonicalRow row(rows, id, problem.metric);
      const double sq_norm = canonical_sq_norm(problem.metric, problem.dim, row);
      const bool bounded = problem.metric != Metric::kCosine || sq_norm > 0.0;
      const double factor = problem.metric == Metric::kCosine && bounded ? 1.0 / sqrt(sq_norm) : 1.0;
      const auto value = [&](std::size_t i) {
        return bounded ? lifted_row_value(problem, row, factor, i) - packed.centre[i] : 0.0;
      };
      double square;
      double largest;
      measure_vector(problem.width, value, square, largest);
      if (square < kLeastNorm * kLeastNorm) square = largest = 0.0;
      const double norm = sqrt(square);
      const auto packed_value = [&](std::size_t i) { return norm > 0.0 ? value(i) : 0.0; };
      const Quantized found = quantize(problem.width, packed.chunks, norm, largest, kLeastScale, packed_value, out);
      offset = !bounded ? NAN : problem.moves_queries() ? 0.5 * square : row_offset(problem, row);
      scale = norm > 0.0 ? found.scale : 0.0;  // any scale is right for zeros: they get the unit in finish_rows_kernel
      const double unit_offset = bounded && norm > 0.0 ? fabs(offset) / found.scale : 0.0;
      own.add({found.norm, found.residual, found.scale, norm, unit_offset});
    } else {
      quantize(problem.width, packed.chunks, 0.0, 0.0, kLeastScale, [](std::size_t) { return 0.0; }, out);
    }
    if (team_lane() == 0) {
      packed.scale[tile * kTileVectors + place] = scale;
      packed.offset[tile * kTileVectors + place] = offset;
    }
  }
  if (team_lane() == 0) maxima[team_of_block()] = own;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned team = 1; team < teams_in_block(); ++team) own.add(maxima[team]);
  packed.tile_norm[tile] = above(own.norm);
  packed.tile_residual[tile] = above(own.residual);
  raise(&packed.units->scale, own.unit_scale);
  raise(&packed.units->norm, own.unit_norm);
  raise(&packed.units->offset, own.unit_offset);
}

// Zero vectors get the largest scale; so may have a larger offset by it than any other.
__global__ void zero_rows_kernel(PackedRows packed) {
  const std::size_t at = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x;
  if (at >= packed.tiles * kTileVectors || packed.scale[at] != 0.0) return;
  const double scale = as_double(packed.units->scale);
  packed.scale[at] = scale;
  if (!isnan(packed.offset[at])) raise(&packed.units->offset, fabs(packed.offset[at]) / scale);
}

__global__ void finish_rows_kernel(Problem problem, PackedRows packed) {
  const std::size_t at = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x;
  if (at >= packed.tiles * kTileVectors) return;
  const double unit = as_double(packed.units->offset);
  const double offset = packed.offset[at];
  const double factor = as_double(packed.units->scale) / packed.scale[at];
  const double lowest = offset - problem.rounding * fabs(offset);
  const double threshold = unit > 0.0 ? lowest / packed.scale[at] / unit : 0.0;
  const bool fits = factor <= kLargestFactor && !isnan(offset);
  packed.inverse_scale[at] = fits ? static_cast<float>(factor) : 1.0f;
  packed.threshold[at] = fits ? static_cast<float>(threshold - fabs(threshold) * kFloatRoom) : -INFINITY;
}

__global__ void convert_queries_kernel(Metric metric, Rows queries, double* values, double* sq_norms) {
  const std::size_t q = blockIdx.x * static_cast<std::size_t>(teams_in_block()) + team_of_block();
  if (q >= queries.count) return;
  const CanonicalRow row(queries, q, metric);
  for (std::size_t i = team_lane(); i < queries.dim; i += kTeam) values[q * queries.dim + i] = row(i);
  const double sq_norm = canonical_sq_norm(metric, queries.dim, row);
  if (team_lane() == 0) sq_norms[q] = sq_norm;
}

__global__ void pack_queries_kernel(Problem problem, CanonicalQueries canonical, PackedRows rows, const Key* best,
                                    std::size_t k, PackedQueries packed) {
  const std::size_t q = blockIdx.x * static_cast<std::size_t>(teams_in_block()) + team_of_block();
  if (q >= (packed.count + kTileVectors - 1) / kTileVectors * kTileVectors) return;
  std::int8_t* out = packed.values + (q / kTileVectors * rows.chunks * kTileVectors + q % kTileVectors) * kChunk;
  if (q >= packed.count) {
    quantize(problem.width, rows.chunks, 0.0, 0.0, kLeastScale, [](std::size_t) { return 0.0; }, out);
    if (team_lane() == 0) packed.bounds[q] = {INFINITY, 0.0f, 0.0f, 0.0f};
    return;
  }
  const double* query = canonical.values + q * problem.dim;
  const double sq_norm = canonical.sq_norms[q];
  const bool bounded = problem.metric != Metric::kCosine || sq_norm > 0.0;
  const double factor = problem.metric == Metric::kCosine && bounded ? 1.0 / sqrt(sq_norm) : 1.0;
  const std::size_t half = problem.dim / 3;
  const auto row = [&](std::size_t i) { return query[i]; };
  const auto value = [&](std::size_t i) {
    if (!bounded) return 0.0;
    if (problem.moves_queries()) return lifted_row_value(problem, row, factor, i) - rows.centre[i];
    if (problem.metric == Metric::kInnerProduct) return query[i];
    return i < half ? query[2 * half + i] + query[i] * query[i] : query[i - half];
  };
  double square;
  double largest;
  measure_vector(problem.width, value, square, largest);
  double offset = 0.5 * square;
  if (!problem.moves_queries()) {
    offset = 0.0;
    for (std::size_t i = team_lane(); i < problem.width; i += kTeam) offset -= value(i) * rows.centre[i];
    if (problem.metric == Metric::kGaussianKL) {
      for (std::size_t i = team_lane(); i < half; i += kTeam) offset -= 0.5 * (query[half + i] + 1.0);
    }
    offset = team_sum(offset);
  }
  // Queries that lie nearer to the centre than this are packed as if they were that far: fp32 bounds can't hold their own
  // scale.
  const double least = problem.moves_queries() ? fmax(kLeastScale, 1e-12 * as_double(rows.units->norm)) : kLeastScale;
  if (square < kLeastNorm * kLeastNorm) square = largest = 0.0;
  const auto packed_value = [&](std::size_t i) { return square > 0.0 ? value(i) : 0.0; };
  const Quantized found = quantize(problem.width, rows.chunks, sqrt(square), largest, least, packed_value, out);
  if (team_lane() != 0) return;
  QueryState state;
  state.offset = bounded ? offset : NAN;
  state.scale = found.scale;
  state.lifted_norm = sqrt(square);
  state.norm = found.norm + found.residual;
  state.residual = found.residual;
  const Key kth = best[q * k + k - 1];
  state.limit = kth == kNoKey ? static_cast<double>(INFINITY) : highest_cost(problem.metric, key_distance(problem.metric, kth));
  const double centre_term = problem.moves_queries() ? 0.0 : state.lifted_norm * rows.units->centre_norm;
  state.slack = problem.rounding * (fabs(offset) + centre_term + problem.unit_terms);
  packed.states[q] = state;
  packed.bounds[q] = bound_of(problem, state, *rows.units);
}

}  // namespace

PackedRows::PackedRows(std::size_t count, std::size_t width, Carver& memory)
    : count(count), tiles((count + kTileVectors - 1) / kTileVectors), chunks((width + kChunk - 1) / kChunk) {
  const std::size_t places = tiles * kTileVectors;
  values = memory.take<std::int8_t>(places * chunks * kChunk);
  scale = memory.take<double>(places);
  offset = memory.take<double>(places);
  inverse_scale = memory.take<float>(places);
  threshold = memory.take<float>(places);
  tile_norm = memory.take<float>(tiles);
  tile_residual = memory.take<float>(tiles);
  centre = memory.take<double>(width);
  sample_factor = memory.take<double>(kCentreRows);
  units = memory.take<Units>(1);
}

void pack_rows(const Problem& problem, const Rows& rows, const PackedRows& packed, cudaStream_t stream) {
  const std::size_t samples = rows.count < kCentreRows ? rows.count : kCentreRows;
  const std::size_t places = packed.tiles * kTileVectors;
  launch(sample_factors_kernel, blocks_for(samples, kThreads / kTeam), kThreads, 0, stream, problem, rows, samples, packed);
  launch(centre_kernel, blocks_for(problem.width, kCentreColumns), kThreads, 0, stream, problem, rows, samples, packed);
  launch(centre_norm_kernel, 1, kTeam, 0, stream, problem, packed);
  launch(pack_rows_kernel, packed.tiles, kThreads, 0, stream, problem, rows, packed);
  launch(zero_rows_kernel, blocks_for(places, kThreads), kThreads, 0, stream, packed);
  launch(finish_rows_kernel, blocks_for(places, kThreads), kThreads, 0, stream, problem, packed);
}

void convert_queries(Metric metric, const Rows& queries, double* values, double* sq_norms, cudaStream_t stream) {
  const std::size_t blocks = blocks_for(queries.count, kThreads / kTeam);
  launch(convert_queries_kernel, blocks, kThreads, 0, stream, metric, queries, values, sq_norms);
}

void pack_queries(const Problem& problem, const CanonicalQueries& canonical, const PackedRows& rows, const Key* best,
                  std::size_t k, const PackedQueries& packed, cudaStream_t stream) {
  const std::size_t places = (packed.count + kTileVectors - 1) / kTileVectors * kTileVectors;
  const std::size_t blocks = blocks_for(places, kThreads / kTeam);
  launch(pack_queries_kernel, blocks, kThreads, 0, stream, problem, canonical, rows, best, k, packed);
}

}  // namespace iiae::cuda
