// Every metric as one problem that a low-precision scan can bound.
//
// The cost of (q, x) is C = query_offset(q) + row_offset(x) - p . r with lifted vectors p of the query and r of the row, and it
// grows with the distance:
//
//   sqeuclidean, euclidean, gaussian_w2   p = q - c, r = x - c            C = |p|^2/2 + |r|^2/2 - p.r = |q - x|^2 / 2
//   cosine                                p = q/|q| - c, r = x/|x| - c    C = |p|^2/2 + |r|^2/2 - p.r = 1 - cos
//   inner_product                         p = q, r = x - c                C = -q.c - p.r = -q.x
//   gaussian_kl                           p = [v_q + m_q^2 | m_q], r = [-1/(2 v_x) | m_x/v_x] - c
//                                         C = -(S(l_q + 1)/2 + p.c) + S(l_x + m_x^2/v_x)/2 - p.r = KL(q || x)
//
// Any vector c is right; near the mean of the rows it keeps p and r short, and with them the error of low precision.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "canonical.h"
#include "cpu/kernels.h"
#include "rows.h"

namespace iiae {

class Problem {
 public:
  // Takes c from at most 1,024 rows spread over `rows`.
  Problem(const Kernels& kernels, Metric metric, const Rows& rows);

  Metric metric() const { return metric_; }
  // Values of a canonical row (rows.dim) and of a lifted vector.
  std::size_t dim() const { return dim_; }
  std::size_t width() const { return width_; }

  struct Lifted {
    double offset;  // NaN: this row or query can't be bounded (a zero vector under cosine)
    double norm;
  };
  // From a canonical row and its squared norm; `out` has width() values.
  Lifted lift_row(const double* row, double sq_norm, double* out) const;
  Lifted lift_query(const double* query, double sq_norm, double* out) const;

  // Queries that lie nearer to c than this are packed as if they were that far: fp32 bounds can't hold their own scale.
  double least_query_scale() const { return least_query_scale_; }

  // No pair of a higher cost has a canonical distance, as rounded, of `distance` or better.
  double highest_cost(float distance) const;
  // Every pair of a lower cost has a canonical distance, as rounded, that is better than `distance`.
  double lowest_cost(float distance) const;
  // No pair of a higher cost can tie with one of this cost, canonical distances being rounded to fp32.
  static double with_ties(double cost) { return cost + std::fabs(cost) * 0x1p-21 + 1e-44; }

  // Bounds the float64 rounding of canonical distances, offsets and products, as a share of the magnitudes in them.
  double slack(const Lifted& query, double threshold, double largest_offset, double largest_norm) const {
    const double terms = std::fabs(query.offset) + std::fabs(threshold) + largest_offset +
                         query.norm * (largest_norm + (moves_queries() ? 0.0 : centre_norm_));
    return rounding_ * (terms + unit_terms_);
  }

 private:
  // Of a canonical distance.
  double cost(double distance) const;
  bool moves_queries() const { return metric_ != Metric::kInnerProduct && metric_ != Metric::kGaussianKL; }

  const Kernels& kernels_;
  Metric metric_;
  std::size_t dim_;
  std::size_t width_;
  double rounding_;    // of a float64 sum of dim_ terms, relative to the sum of their magnitudes, and some more
  double unit_terms_;  // magnitude of the terms of a distance that don't shrink with the rows
  double centre_norm_ = 0.0;
  double least_query_scale_ = 0.0;
  std::vector<double> centre_;  // (width,)
};

}  // namespace iiae
