// The canonical distance (see canonical.h) on the device. A team of 16 threads, half a warp, works on a row: thread j is lane j
// of the sum. Compiled without fused operations (--fmad=false), so that every bit equals the CPU's.
#pragma once

#include <cuda_runtime.h>

#include "canonical.h"
#include "rows.h"

namespace iiae::cuda {

inline constexpr unsigned kTeam = kLanes;
inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline unsigned team_lane() { return threadIdx.x % kTeam; }
__device__ inline unsigned team_of_block() { return threadIdx.x / kTeam; }
__device__ inline unsigned teams_in_block() { return blockDim.x / kTeam; }
__device__ inline unsigned team_mask() { return threadIdx.x % kWarp < kTeam ? 0x0000ffffu : 0xffff0000u; }

// The lanes' sums, folded in halves: lane j takes j + 8, then j + 4, j + 2, j + 1. All lanes get the same bits.
__device__ inline double team_sum(double value) {
  for (int step = kTeam / 2; step > 0; step /= 2) value += __shfl_xor_sync(team_mask(), value, step);
  return value;
}

__device__ inline double team_max(double value) {
  for (int step = kTeam / 2; step > 0; step /= 2) value = fmax(value, __shfl_xor_sync(team_mask(), value, step));
  return value;
}

__device__ inline double value_at(const std::byte* row, DType dtype, std::size_t i) {
  switch (dtype) {
    case DType::kFloat32:
      return to_double(reinterpret_cast<const float*>(row)[i]);
    case DType::kFloat16:
      return to_double(reinterpret_cast<const Half*>(row)[i]);
    case DType::kBFloat16:
      return to_double(reinterpret_cast<const BFloat16*>(row)[i]);
    case DType::kFloat64:
      return reinterpret_cast<const double*>(row)[i];
    case DType::kUInt8:
      return to_double(reinterpret_cast<const std::uint8_t*>(row)[i]);
    case DType::kInt8:
      return to_double(reinterpret_cast<const std::int8_t*>(row)[i]);
  }
  return 0.0;  // not reached: every dtype is above
}

// A row as load_row() of the CPU gives it: float64, and scaled for cosine if it was float64 already.
class CanonicalRow {
 public:
  __device__ CanonicalRow(const Rows& rows, std::size_t i, Metric metric) : row_(rows.row(i)), dtype_(rows.dtype) {
    if (metric != Metric::kCosine || dtype_ != DType::kFloat64) return;
    double largest = 0.0;
    for (std::size_t j = team_lane(); j < rows.dim; j += kTeam) largest = fmax(largest, fabs(value_at(row_, dtype_, j)));
    largest = team_max(largest);
    exponent_ = largest > 0.0 ? ilogb(largest) : 0;
  }

  __device__ double operator()(std::size_t i) const {
    const double value = value_at(row_, dtype_, i);
    return exponent_ == 0 ? value : scalbn(value, -exponent_);
  }

 private:
  const std::byte* row_;
  DType dtype_;
  int exponent_ = 0;
};

// The squared norm, which only cosine needs.
template <class Row>
__device__ inline double canonical_sq_norm(Metric metric, std::size_t dim, const Row& row) {
  if (metric != Metric::kCosine) return 0.0;
  double sum = 0.0;
  for (std::size_t i = team_lane(); i < dim; i += kTeam) {
    const double value = row(i);
    sum += value * value;
  }
  return team_sum(sum);
}

// Queries in float64 with their squared norms.
struct CanonicalQueries {
  const double* values;    // (count, dim)
  const double* sq_norms;  // (count,)
  std::size_t dim;
};

// Canonical distances of one row and the queries that which[0 .. kQueries) names, before their rounding to fp32.
template <int kQueries>
__device__ inline void canonical_distances(Metric metric, const CanonicalQueries& queries, const unsigned (&which)[kQueries],
                                           const CanonicalRow& row, double (&distance)[kQueries]) {
  const double* query[kQueries];
  double sum[kQueries];
#pragma unroll
  for (int c = 0; c < kQueries; ++c) {
    query[c] = queries.values + which[c] * queries.dim;
    sum[c] = 0.0;
  }
  const std::size_t dim = queries.dim;
  if (metric == Metric::kGaussianKL) {
    const std::size_t half = dim / 3;
    for (std::size_t i = team_lane(); i < half; i += kTeam) {
      const double mean = row(i);
      const double logvar = row(half + i);
      const double variance = row(2 * half + i);
#pragma unroll
      for (int c = 0; c < kQueries; ++c) {
        const double difference = query[c][i] - mean;
        const double ratio = (query[c][2 * half + i] + difference * difference) / variance;
        sum[c] += ((logvar - query[c][half + i]) + ratio) - 1.0;
      }
    }
  } else if (metric == Metric::kInnerProduct || metric == Metric::kCosine) {
    for (std::size_t i = team_lane(); i < dim; i += kTeam) {
      const double value = row(i);
#pragma unroll
      for (int c = 0; c < kQueries; ++c) sum[c] += query[c][i] * value;
    }
  } else {
    for (std::size_t i = team_lane(); i < dim; i += kTeam) {
      const double value = row(i);
#pragma unroll
      for (int c = 0; c < kQueries; ++c) {
        const double difference = query[c][i] - value;
        sum[c] += difference * difference;
      }
    }
  }
  const double x_sq_norm = canonical_sq_norm(metric, dim, row);
#pragma unroll
  for (int c = 0; c < kQueries; ++c) {
    const double total = team_sum(sum[c]);
    switch (metric) {
      case Metric::kEuclidean:
        distance[c] = sqrt(total);
        break;
      case Metric::kCosine: {
        const double q_sq_norm = queries.sq_norms[which[c]];
        const double cosine = 1.0 - total / sqrt(q_sq_norm * x_sq_norm);
        distance[c] = q_sq_norm == 0.0 || x_sq_norm == 0.0 ? 1.0 : cosine > 0.0 ? cosine : 0.0;
        break;
      }
      case Metric::kGaussianKL:
        distance[c] = total > 0.0 ? 0.5 * total : 0.0;
        break;
      default:
        distance[c] = total;
    }
  }
}

// Calls each(c, i, distance) in one lane for the query which[c] and every row i of [begin, end) that falls to this team of the
// block; queries from `used` on are left out.
template <int kQueries, class Each>
__device__ inline void for_each_distance(const Rows& rows, Metric metric, const CanonicalQueries& queries,
                                         const unsigned (&which)[kQueries], int used, std::size_t begin, std::size_t end,
                                         Each each) {
  for (std::size_t i = begin + team_of_block(); i < end; i += teams_in_block()) {
    const CanonicalRow row(rows, i, metric);
    double distance[kQueries];
    canonical_distances<kQueries>(metric, queries, which, row, distance);
#pragma unroll
    for (int c = 0; c < kQueries; ++c) {
      if (static_cast<unsigned>(c) == team_lane() && c < used) each(c, i, distance[c]);
    }
  }
}

}  // namespace iiae::cuda
