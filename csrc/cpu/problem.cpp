#include "cpu/problem.h"

#include <algorithm>

namespace iiae {

namespace {

constexpr std::size_t kCentreRows = 1024;
constexpr double kNotBounded = std::numeric_limits<double>::quiet_NaN();

Problem::Lifted snap_to_zero(Problem::Lifted found, std::size_t width, double* lifted) {
  if (found.norm >= kLeastNorm) return found;
  std::fill(lifted, lifted + width, 0.0);
  return {found.offset, 0.0};
}

}  // namespace

Problem::Problem(const Kernels& kernels, Metric metric, const Rows& rows)
    : kernels_(kernels),
      metric_(metric),
      dim_(rows.dim),
      width_(metric == Metric::kGaussianKL ? rows.dim / 3 * 2 : rows.dim),
      rounding_((static_cast<double>(rows.dim) + 64.0) * 0x1p-51),
      unit_terms_(metric == Metric::kCosine       ? 4.0
                  : metric == Metric::kGaussianKL ? 50.0 * static_cast<double>(rows.dim)
                                                  : 0.0),
      centre_(width_, 0.0) {
  const std::size_t count = std::min(rows.count, kCentreRows);
  std::vector<double> row(dim_);
  std::vector<double> lifted(width_);
  std::vector<double> mean(width_, 0.0);
  std::size_t used = 0;
  double largest = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    const double sq_norm = kernels.load_row(rows, i * rows.count / count, metric, row.data());
    const Lifted found = lift_row(row.data(), sq_norm, lifted.data());
    if (std::isnan(found.offset)) continue;
    ++used;
    largest = std::max(largest, found.norm);
    for (std::size_t j = 0; j < width_; ++j) mean[j] += lifted[j];
  }
  for (std::size_t j = 0; j < width_; ++j) centre_[j] = used ? mean[j] / static_cast<double>(used) : 0.0;
  double square = 0.0;
  for (const double value : centre_) square += value * value;
  centre_norm_ = std::sqrt(square);
  least_query_scale_ = moves_queries() ? std::max(kLeastScale, 1e-12 * largest) : kLeastScale;
}

Problem::Lifted Problem::lift_row(const double* row, double sq_norm, double* out) const {
  switch (metric_) {
    case Metric::kGaussianKL: {
      const std::size_t half = dim_ / 3;
      const double* mean = row;
      const double* logvar = row + half;
      const double* variance = row + 2 * half;
      double offset = 0.0;
      for (std::size_t i = 0; i < half; ++i) {
        out[i] = -0.5 / variance[i];
        out[half + i] = mean[i] / variance[i];
        offset += logvar[i] + mean[i] * mean[i] / variance[i];
      }
      return snap_to_zero({0.5 * offset, std::sqrt(kernels_.centre(width_, out, 1.0, centre_.data(), out))}, width_, out);
    }
    case Metric::kCosine: {
      if (sq_norm == 0.0) return {kNotBounded, 0.0};
      const double square = kernels_.centre(width_, row, 1.0 / std::sqrt(sq_norm), centre_.data(), out);
      return snap_to_zero({0.5 * square, std::sqrt(square)}, width_, out);
    }
    case Metric::kInnerProduct:
      return snap_to_zero({0.0, std::sqrt(kernels_.centre(width_, row, 1.0, centre_.data(), out))}, width_, out);
    default: {
      const double square = kernels_.centre(width_, row, 1.0, centre_.data(), out);
      return snap_to_zero({0.5 * square, std::sqrt(square)}, width_, out);
    }
  }
}

Problem::Lifted Problem::lift_query(const double* query, double sq_norm, double* out) const {
  if (moves_queries()) return lift_row(query, sq_norm, out);
  double offset = 0.0;
  if (metric_ == Metric::kGaussianKL) {
    const std::size_t half = dim_ / 3;
    for (std::size_t i = 0; i < half; ++i) {
      out[i] = query[2 * half + i] + query[i] * query[i];
      out[half + i] = query[i];
      offset -= 0.5 * (query[half + i] + 1.0);
    }
  } else {
    std::copy(query, query + width_, out);
  }
  double square = 0.0;
  for (std::size_t i = 0; i < width_; ++i) {
    square += out[i] * out[i];
    offset -= out[i] * centre_[i];
  }
  return snap_to_zero({offset, std::sqrt(square)}, width_, out);
}

double Problem::cost(double distance) const {
  switch (metric_) {
    case Metric::kSqEuclidean:
    case Metric::kGaussianW2:
      return 0.5 * distance;
    case Metric::kEuclidean:
      return 0.5 * distance * distance;
    case Metric::kInnerProduct:
      return -distance;
    case Metric::kCosine:
    case Metric::kGaussianKL:
      return distance;
  }
  return distance;  // not reached: every metric is above
}

double Problem::highest_cost(float distance) const {
  const double value = distance;
  // The cost of a euclidean distance grows faster than linearly: its rounding has to be undone before.
  const double room = metric_ == Metric::kEuclidean ? value * 0x1p-22 + 0x1p-149 : 0.0;
  return with_ties(cost(value + room));
}

double Problem::lowest_cost(float distance) const {
  const double value = distance;
  const double room = metric_ == Metric::kEuclidean ? value * 0x1p-22 + 0x1p-149 : 0.0;
  const double lowest = cost(value - room);
  return lowest - std::fabs(lowest) * 0x1p-21 - 1e-44;
}

}  // namespace iiae
