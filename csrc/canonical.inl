// The canonical distance itself. Each cpu/kernels_*.cpp includes this inside its own namespace, so that it is compiled for that
// instruction set; the order of every operation is written out, so that all of them give the same bits (see canonical.h).

// Ops::kDoubles consecutive lanes. Written with vector types because compilers vectorize the plain loop over lanes badly.
using Wide = double __attribute__((vector_size(8 * Ops::kDoubles)));
using WideFloat = float __attribute__((vector_size(4 * Ops::kDoubles)));
using Quad = double __attribute__((vector_size(32)));

// Kept apart from lane_sum() so that float rows are converted while they are summed.
inline Wide load_wide(const double* p) {
  Wide values;
  std::memcpy(&values, p, sizeof values);
  return values;
}
inline Wide load_wide(const float* p) {
  WideFloat values;
  std::memcpy(&values, p, sizeof values);
  return __builtin_convertvector(values, Wide);
}

// S of csrc/canonical.h: `term` is given a function that loads from an array of double or float at the index in question, one
// value or a vector of them.
template <class Term>
inline double lane_sum(std::size_t n, Term term) {
  Wide lanes[kLanes / Ops::kDoubles] = {};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; j += Ops::kDoubles) {
      lanes[j / Ops::kDoubles] += term([&](const auto* p) { return load_wide(p + i + j); });
    }
  }
  for (std::size_t j = 0; i + j < n; ++j) {
    lanes[j / Ops::kDoubles][j % Ops::kDoubles] += term([&](const auto* p) { return static_cast<double>(p[i + j]); });
  }
  Quad quads[kLanes / 4];
  std::memcpy(quads, lanes, sizeof quads);
  quads[0] += quads[2];
  quads[1] += quads[3];
  quads[0] += quads[1];
  return (quads[0][0] + quads[0][2]) + (quads[0][1] + quads[0][3]);
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

// The distance of a query and a row as load_row gave them, before its rounding to fp32; float rows may also be as they are.
// `dim` counts lifted values.
template <class Value>
inline double canonical_distance(Metric metric, std::size_t dim, const double* q, double q_sq_norm, const Value* x,
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

inline double distance(Metric metric, std::size_t dim, const double* q, double q_sq_norm, const double* x, double x_sq_norm) {
  return canonical_distance(metric, dim, q, q_sq_norm, x, x_sq_norm);
}

// The distance of a query as load_row gave it and row i, which is converted as it is summed if its dtype allows that; `buffer`
// has room for it otherwise.
inline double distance_to_row(Metric metric, const Rows& rows, std::size_t i, const double* q, double q_sq_norm,
                              double* buffer) {
  if (rows.dtype == DType::kFloat32) {  // never of a Gaussian metric
    const auto* x = reinterpret_cast<const float*>(rows.row(i));
    const double x_sq_norm = metric == Metric::kCosine ? lane_sum(rows.dim, [&](auto at) { return at(x) * at(x); }) : 0.0;
    return canonical_distance(metric, rows.dim, q, q_sq_norm, x, x_sq_norm);
  }
  const double x_sq_norm = load_row(rows, i, metric, buffer);
  return canonical_distance(metric, rows.dim, q, q_sq_norm, buffer, x_sq_norm);
}
