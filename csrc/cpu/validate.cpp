#include "cpu/validate.h"

#include <atomic>
#include <cmath>
#include <cstdio>
#include <vector>

#include "canonical.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace iiae {

namespace {

constexpr std::size_t kRowsPerTask = 1024;

}  // namespace

void validate(const Rows& rows, Metric metric, const std::string& name, std::size_t start, std::size_t threads) {
  const Kernels& table = kernels();
  const double limit = squared_norm_limit(metric);
  const std::size_t normed = is_gaussian(metric) ? rows.dim / 2 : rows.dim;  // of a Gaussian only its mean is unbounded
  std::atomic<std::size_t> first_bad{rows.count};
  const std::size_t tasks = (rows.count + kRowsPerTask - 1) / kRowsPerTask;
  parallel_for(tasks, threads, [&](std::size_t task) {
    const std::size_t begin = task * kRowsPerTask;
    const std::size_t end = std::min(begin + kRowsPerTask, rows.count);
    std::vector<double> row(rows.dim);
    for (std::size_t i = begin; i < end && i < first_bad; ++i) {
      table.load_row(rows, i, Metric::kSqEuclidean, row.data());
      const double sq_norm = table.check(normed, rows.dim, row.data());
      if (metric == Metric::kCosine ? !std::isnan(sq_norm) : sq_norm <= limit) continue;
      for (std::size_t seen = first_bad; i < seen && !first_bad.compare_exchange_weak(seen, i);) {
      }
    }
  });
  if (first_bad == rows.count) return;
  std::vector<double> row(rows.dim);
  table.load_row(rows, first_bad, Metric::kSqEuclidean, row.data());
  const double sq_norm = table.check(normed, rows.dim, row.data());
  const std::string where = name + " row " + std::to_string(start + first_bad);
  if (std::isnan(sq_norm)) throw std::invalid_argument(where + " holds NaN or infinity; accepted are finite values");
  char text[128];
  std::snprintf(text, sizeof text, " has a squared norm of %.3g; accepted is at most %g, so that distances fit fp32", sq_norm,
                limit);
  throw std::invalid_argument(where + text);
}

void lift_rows(const Rows& rows, Metric metric, double* out, std::size_t threads) {
  const std::size_t width = lifted_dim(metric, rows.dim);
  const std::size_t tasks = (rows.count + kRowsPerTask - 1) / kRowsPerTask;
  parallel_for(tasks, threads, [&](std::size_t task) {
    const std::size_t end = std::min((task + 1) * kRowsPerTask, rows.count);
    std::vector<double> packed(rows.dim);
    for (std::size_t i = task * kRowsPerTask; i < end; ++i) {
      kernels().load_row(rows, i, metric, packed.data());
      lift(metric, rows.dim, packed.data(), out + i * width);
    }
  });
}

}  // namespace iiae
