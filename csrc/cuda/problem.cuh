// Every metric as one problem that a low-precision scan can bound: cpu/problem.h on the device, with the same formulas. The
// cost of (q, x) is offset(q) + offset(x) - p.r and grows with the distance; lifted vectors p and r are written as a (P + E)
// with int8 P, and by Cauchy-Schwarz P.R is off by at most |E_p||R| + |P + E_p||E_r| in units of a_p a_r (see cpu/packed.h).
#pragma once

#include <cuda_runtime.h>

#include "canonical.h"
#include "cuda/canonical.cuh"

namespace iiae::cuda {

// The same on host and device, so it travels as a kernel argument.
struct Problem {
  Metric metric;
  std::size_t dim;    // of a canonical row
  std::size_t width;  // of a lifted vector
  double rounding;    // of a float64 sum of dim terms, relative to the sum of their magnitudes, and some more
  double unit_terms;  // magnitude of the terms of a distance that don't shrink with the rows

  Problem(Metric metric, std::size_t dim)
      : metric(metric),
        dim(dim),
        width(metric == Metric::kGaussianKL ? dim / 3 * 2 : dim),
        rounding((static_cast<double>(dim) + 64.0) * 0x1p-51),
        unit_terms(metric == Metric::kCosine       ? 4.0
                   : metric == Metric::kGaussianKL ? 50.0 * static_cast<double>(dim)
                                                   : 0.0) {}

  __device__ bool moves_queries() const { return metric != Metric::kInnerProduct && metric != Metric::kGaussianKL; }
};

// Value i of a row's lifted vector, before the centre is taken away; `factor` is 1 / |row| for cosine, else 1.
template <class Row>
__device__ inline double lifted_row_value(const Problem& problem, const Row& row, double factor, std::size_t i) {
  if (problem.metric != Metric::kGaussianKL) return row(i) * factor;
  const std::size_t half = problem.dim / 3;
  return i < half ? -0.5 / row(2 * half + i) : row(i - half) / row(i + half);
}

// Of a canonical row, which is at hand as row(i): all threads of the team get the offset's part that is not |r|^2 / 2.
template <class Row>
__device__ inline double row_offset(const Problem& problem, const Row& row) {
  if (problem.metric != Metric::kGaussianKL) return 0.0;
  const std::size_t half = problem.dim / 3;
  double sum = 0.0;
  for (std::size_t i = team_lane(); i < half; i += kTeam) sum += row(half + i) + row(i) * row(i) / row(2 * half + i);
  return 0.5 * team_sum(sum);
}

__device__ inline double with_ties(double cost) { return cost + fabs(cost) * 0x1p-21 + 1e-44; }

// The cost of a distance; the other way round, distances of a cost are off by roundings, for which the two functions below make
// room.
__device__ inline double cost_of(Metric metric, double distance) {
  switch (metric) {
    case Metric::kSqEuclidean:
    case Metric::kGaussianW2:
      return 0.5 * distance;
    case Metric::kEuclidean:
      return 0.5 * distance * distance;
    case Metric::kInnerProduct:
      return -distance;
    default:
      return distance;
  }
}

// What rounding to fp32 and back may move a distance by, where the metric is a root.
__device__ inline double root_room(Metric metric, double distance) {
  return metric == Metric::kEuclidean ? distance * 0x1p-22 + 0x1p-149 : 0.0;
}

// No pair of a lower cost has a canonical distance, as rounded, of `distance` or worse.
__device__ inline double lowest_cost(Metric metric, float distance) {
  const double lowest = cost_of(metric, distance - root_room(metric, distance));
  return lowest - fabs(lowest) * 0x1p-21 - 1e-44;
}

// No pair of a higher cost has a canonical distance, as rounded, of `distance` or better.
__device__ inline double highest_cost(Metric metric, float distance) {
  return with_ties(cost_of(metric, distance + root_room(metric, distance)));
}

// Rounds up to fp32; for magnitudes.
__device__ inline float above(double value) { return __double2float_ru(value); }

}  // namespace iiae::cuda
