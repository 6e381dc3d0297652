#include "cpu/ranking.h"

#include <algorithm>

#include "cpu/brute_force.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace iiae {

namespace {

constexpr std::size_t kQueryGroup = 8;  // queries that share one conversion of a row to float64

}  // namespace

Ranking::Ranking(const Rows& queries, Metric metric, const std::int64_t* labels, const std::int64_t* exclude,
                 std::size_t threads)
    : queries_(queries),
      metric_(metric),
      labels_(labels),
      exclude_(exclude),
      threads_(threads),
      relevant_(queries.count),
      counts_(queries.count) {}

// Calls each(query, key) for the pairs whose labels are equal, or for those whose labels differ.
template <class Each>
void Ranking::for_each_pair(const Rows& rows, std::size_t start, const std::int64_t* labels, bool relevant, Each each) {
  const std::size_t groups = (queries_.count + kQueryGroup - 1) / kQueryGroup;
  parallel_for(groups, threads_, [&](std::size_t task) {
    const std::size_t first = task * kQueryGroup;
    const std::size_t last = std::min(first + kQueryGroup, queries_.count);
    const Kernels& table = kernels();
    std::vector<CanonicalQuery> group;
    for (std::size_t q = first; q < last; ++q) group.emplace_back(table, metric_, queries_, q);
    std::vector<double> row(rows.dim);
    double sq_norm = 0.0;
    for (std::size_t i = 0; i < rows.count; ++i) {
      const std::size_t index = start + i;
      bool loaded = false;
      for (std::size_t q = first; q < last; ++q) {
        if ((labels_[q] == labels[i]) != relevant) continue;
        if (exclude_ && exclude_[q] == static_cast<std::int64_t>(index)) continue;
        if (!loaded) sq_norm = table.load_row(rows, i, metric_, row.data());
        loaded = true;
        const CanonicalQuery& query = group[q - first];
        const double distance = table.distance(metric_, row.size(), query.values.data(), query.sq_norm, row.data(), sq_norm);
        each(q, make_key(metric_, distance, index));
      }
    }
  });
}

void Ranking::collect(const Rows& rows, std::size_t start, const std::int64_t* labels) {
  if (!collecting_) throw std::logic_error("collect() after count()");
  for_each_pair(rows, start, labels, true, [&](std::size_t q, Key key) { relevant_[q].push_back(key); });
}

void Ranking::count(const Rows& rows, std::size_t start, const std::int64_t* labels) {
  if (collecting_) {
    collecting_ = false;
    parallel_for(queries_.count, threads_, [&](std::size_t q) {
      std::sort(relevant_[q].begin(), relevant_[q].end());
      counts_[q].assign(relevant_[q].size() + 1, 0);
    });
  }
  for_each_pair(rows, start, labels, false, [&](std::size_t q, Key key) {
    const auto& keys = relevant_[q];
    ++counts_[q][static_cast<std::size_t>(std::lower_bound(keys.begin(), keys.end(), key) - keys.begin())];
  });
}

const std::vector<std::vector<std::int64_t>>& Ranking::ranks() {
  if (collecting_) throw std::logic_error("ranks() before count()");
  for (auto& counts : counts_) {
    counts.pop_back();  // the rows after the last relevant one
    std::int64_t rank = 0;
    for (auto& value : counts) value = rank += value + 1;
  }
  return counts_;
}

}  // namespace iiae
