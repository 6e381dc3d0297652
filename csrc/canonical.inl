// The canonical distance itself. Each cpu/kernels_*.cpp includes this inside its own namespace, so that it is compiled for that
// instruction set; the order of every operation is written out, so that all of them give the same bits (see canonical.h).

// Four consecutive lanes. Written with vector types because compilers vectorize the plain loop over lanes badly.
using Quad = double __attribute__((vector_size(32)));

// S of csrc/canonical.h: `term` is given a function that loads from an array at the index in question, one value or a Quad.
template <class Term>
inline double lane_sum(std::size_t n, Term term) {
  Quad lanes[4] = {};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::size_t j = 0; j < 4; ++j) {
      lanes[j] += term([&](const double* p) {
        Quad values;
        std::memcpy(&values, p + i + 4 * j, sizeof values);
        return values;
      });
    }
  }
  for (std::size_t j = 0; i + j < n; ++j) lanes[j / 4][j % 4] += term([&](const double* p) { return p[i + j]; });
  lanes[0] += lanes[2];
  lanes[1] += lanes[3];
  lanes[0] += lanes[1];
  return (lanes[0][0] + lanes[0][2]) + (lanes[0][1] + lanes[0][3]);
}

// Converts a row to float64 and returns its squared norm where the metric needs it. Gaussian rows are lifted already.
inline double load_row(const Rows& rows, std::size_t i, Metric metric, double* values) {
  with_type(rows.dtype, rows.row(i), [&](const auto* source) {
    for (std::size_t j = 0; j < rows.dim; ++j) values[j] = to_double(source[j]);
  });
  if (metric != Metric::kCosine) return 0.0;
  if (rows.dtype == DType::kFloat64) scale_to_one(values, rows.dim);
  return lane_sum(rows.dim, [&](auto at) { return at(values) * at(values); });
}

// The distance of a query and a row as load_row gave them, before its rounding to fp32. `dim` counts lifted values.
inline double canonical_distance(Metric metric, std::size_t dim, const double* q, double q_sq_norm, const double* x,
                                 double x_sq_norm) {
  const auto dot = [&] { return lane_sum(dim, [&](auto at) { return at(q) * at(x); }); };
  const auto squared = [&] {
    return lane_sum(dim, [&](auto at) {
      const auto difference = at(q) - at(x);
      return difference * difference;
    });
  };
  switch (metric) {
    case Metric::kSqEuclidean:
    case Metric::kGaussianW2:
      return squared();
    case Metric::kEuclidean:
      return std::sqrt(squared());
    case Metric::kInnerProduct:
      return dot();
    case Metric::kCosine: {
      if (q_sq_norm == 0.0 || x_sq_norm == 0.0) return 1.0;
      const double distance = 1.0 - dot() / std::sqrt(q_sq_norm * x_sq_norm);
      return distance > 0.0 ? distance : 0.0;
    }
    case Metric::kGaussianKL: {
      const std::size_t half = dim / 3;
      const double sum = lane_sum(half, [&](auto at) {
        const auto difference = at(q) - at(x);
        const auto ratio = (at(q + 2 * half) + difference * difference) / at(x + 2 * half);
        return ((at(x + half) - at(q + half)) + ratio) - 1.0;
      });
      return sum > 0.0 ? 0.5 * sum : 0.0;
    }
  }
  return 0.0;  // not reached: every metric is above
}
