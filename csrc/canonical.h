// The canonical distance (its code is in canonical.inl): the definition that every search path must agree with, bit for bit.
//
// Inputs are converted to float64 (exactly: every accepted dtype is a subset of it). A sum over i of t_i is always taken
// in 16 interleaved lanes, lane j adding t_j, t_{j+16}, ... in that order from +0, and then folded in halves: lane j takes
// lane j+8, then j+4, j+2, j+1. No operation is fused. With S for such a sum:
//
//   sqeuclidean    S((q_i - x_i)^2)
//   euclidean      sqrt(sqeuclidean)
//   inner_product  S(q_i x_i)
//   cosine         max(0, 1 - S(q_i x_i) / sqrt(S(q_i^2) * S(x_i^2))), and 1 if either norm is zero. float64 rows are
//                  first scaled by the power of two that brings their largest magnitude into [1, 2); that changes no
//                  bit unless something would overflow or underflow (it cannot with the narrower dtypes).
//   gaussian_w2    sqeuclidean of the lifted rows [m | exp(l/2)]
//   gaussian_kl    max(0, S(((l_x - l_q) + (exp(l_q) + (m_q - m_x)^2) / exp(l_x)) - 1) / 2), query first: KL(q || x)
//
// with log-variances l clamped to [-14, 9.21035] as in the model. The result is rounded once, to fp32, and -0 becomes +0.
// Lifted Gaussian rows are float64, with exp() evaluated once per row, so that no path evaluates it differently.
#pragma once

#include <cmath>
#include <cstdint>

#include "rows.h"

#ifdef __FAST_MATH__
#error "-ffast-math reorders sums, which are the same on every machine only as they are written"
#endif

namespace iiae {

inline constexpr std::size_t kLanes = 16;

// The squares of a vector shorter than this underflow, and its norm with them. Its products with anything that is accepted are
// far below the least fp32, so that a scan may take it for zeros.
inline constexpr double kLeastNorm = 1e-140;

inline constexpr double kLogvarMin = -14.0;
inline constexpr double kLogvarMax = 9.21035;

IIAE_BOTH inline bool is_gaussian(Metric metric) { return metric == Metric::kGaussianKL || metric == Metric::kGaussianW2; }

// (2 sqrt(8e37))^2 is just below the largest fp32. For gaussian_kl the squared difference of means is divided by a variance
// that may be as low as exp(-14).
inline double squared_norm_limit(Metric metric) {
  if (metric == Metric::kCosine) return std::numeric_limits<double>::infinity();
  return metric == Metric::kGaussianKL ? 1e32 : 8e37;
}

// Values of a row after lifting: gaussian_kl keeps [m | l | exp(l)], gaussian_w2 [m | exp(l/2)].
inline std::size_t lifted_dim(Metric metric, std::size_t dim) { return metric == Metric::kGaussianKL ? dim / 2 * 3 : dim; }

// Clamps and lifts one packed Gaussian row [mean | logvar] of `dim` values.
inline void lift(Metric metric, std::size_t dim, const double* packed, double* out) {
  const std::size_t half = dim / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const double logvar = std::fmin(std::fmax(packed[half + i], kLogvarMin), kLogvarMax);
    out[i] = packed[i];
    if (metric == Metric::kGaussianW2) {
      out[half + i] = std::exp(0.5 * logvar);
    } else {
      out[half + i] = logvar;
      out[2 * half + i] = std::exp(logvar);
    }
  }
}

// Scales by the power of two that brings the largest magnitude into [1, 2).
inline void scale_to_one(double* values, std::size_t dim) {
  double largest = 0.0;
  for (std::size_t j = 0; j < dim; ++j) largest = std::fmax(largest, std::fabs(values[j]));
  const int exponent = largest > 0.0 ? std::ilogb(largest) : 0;
  for (std::size_t j = 0; j < dim; ++j) values[j] = std::scalbn(values[j], -exponent);
}

// (distance, index) as one integer: smaller is better, ties go to the lowest index. Indices stay below 2^32.
using Key = std::uint64_t;
inline constexpr Key kNoKey = ~Key{0};  // sorts after every real result

IIAE_BOTH inline std::uint32_t order_bits(float distance) {
  std::uint32_t bits;
  std::memcpy(&bits, &distance, sizeof bits);
  return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

IIAE_BOTH inline Key make_key(Metric metric, double distance, std::uint64_t index) {
  const float rounded = static_cast<float>(distance) + 0.0f;  // -0 + 0 is +0
  const std::uint32_t bits = order_bits(rounded);
  return (static_cast<Key>(metric == Metric::kInnerProduct ? ~bits : bits) << 32) | index;
}

IIAE_BOTH inline float key_distance(Metric metric, Key key) {
  std::uint32_t bits = static_cast<std::uint32_t>(key >> 32);
  if (metric == Metric::kInnerProduct) bits = ~bits;
  bits ^= (bits >> 31) ? 0x80000000u : 0xffffffffu;
  float distance;
  std::memcpy(&distance, &bits, sizeof distance);
  return distance;
}

}  // namespace iiae
