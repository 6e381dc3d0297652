#include "cpu/search.h"

#include <limits>
#include <mutex>

#include "canonical.h"
#include "cpu/parallel.h"

namespace iiae {

namespace {

constexpr std::size_t kQueryGroup = 8;  // queries that share one conversion of a row to float64

}  // namespace

Searcher::Searcher(const Rows& queries, Metric metric, std::size_t k, std::size_t threads)
    : queries_(queries), metric_(metric), k_(k), threads_(threads), best_(queries.count, TopK(k)) {}

void Searcher::scan(const Rows& rows, std::size_t start, const Filter& filter) {
  const std::size_t groups = (queries_.count + kQueryGroup - 1) / kQueryGroup;
  if (groups == 0 || rows.count == 0) return;
  // Few queries: split the rows too, so that one query uses all threads.
  const std::size_t parts = std::min(rows.count, std::max<std::size_t>(1, 4 * threads_ / groups));
  std::mutex mutex;
  parallel_for(groups * parts, threads_, [&](std::size_t task) {
    const std::size_t first = task / parts * kQueryGroup;
    const std::size_t last = std::min(first + kQueryGroup, queries_.count);
    const std::size_t part = task % parts;
    const std::size_t row_begin = part * rows.count / parts;
    const std::size_t row_end = (part + 1) * rows.count / parts;
    std::vector<CanonicalRow> group(last - first, CanonicalRow(rows.dim));
    std::vector<TopK> found(last - first, TopK(k_));
    for (std::size_t q = first; q < last; ++q) load_row(queries_, q, metric_, group[q - first]);
    CanonicalRow row(rows.dim);
    for (std::size_t i = row_begin; i < row_end; ++i) {
      load_row(rows, i, metric_, row);
      for (std::size_t q = first; q < last; ++q) {
        if (!filter.passes(q, i, start + i)) continue;
        found[q - first].push(make_key(metric_, canonical_distance(metric_, rows.dim, group[q - first], row), start + i));
      }
    }
    const std::lock_guard lock(mutex);
    for (std::size_t q = first; q < last; ++q) best_[q].merge(found[q - first]);
  });
}

void Searcher::write(float* distances, std::int64_t* indices) {
  const float missing = (metric_ == Metric::kInnerProduct ? -1.0f : 1.0f) * std::numeric_limits<float>::infinity();
  parallel_for(queries_.count, threads_, [&](std::size_t q) {
    const auto& keys = best_[q].sorted();
    for (std::size_t i = 0; i < k_; ++i) {
      const bool there = i < keys.size();
      distances[q * k_ + i] = there ? key_distance(metric_, keys[i]) : missing;
      indices[q * k_ + i] = there ? static_cast<std::int64_t>(keys[i] & 0xffffffffu) : -1;
    }
  });
}

}  // namespace iiae
