// Ranks of the relevant rows of each query in its full ranking, without a Q x N matrix and without sorting N rows.
#pragma once

#include <cstdint>
#include <vector>

#include "canonical.h"
#include "cpu/kernels.h"
#include "rows.h"

namespace iiae {

// Use: collect() over the whole database, then count() over the whole database, then ranks(). A row is relevant to a query
// if their labels are equal. Memory: about 40 bytes for every pair of a query and a row relevant to it.
class Ranking {
 public:
  // `queries`, `labels` (Q,) and `exclude` ((Q,) row ids or null; negative for none) must outlive the ranking.
  Ranking(const Rows& queries, Metric metric, const std::int64_t* labels, const std::int64_t* exclude, std::size_t threads);

  // Notes the canonical distances of the relevant rows. `labels` belongs to `rows`, whose first row has index `start`.
  void collect(const Rows& rows, std::size_t start, const std::int64_t* labels);

  // Counts the other rows that come before each relevant one.
  void count(const Rows& rows, std::size_t start, const std::int64_t* labels);

  // Ranks (1 is best), ascending, of the relevant rows of every query; once.
  std::vector<std::vector<std::int64_t>> ranks();

 private:
  struct Ruler;
  struct Counting;

  bool excludes(std::size_t query, std::size_t index) const {
    return exclude_ && exclude_[query] == static_cast<std::int64_t>(index);
  }
  template <class Each>
  void for_each_pair(const Rows& rows, std::size_t start, const std::int64_t* labels, bool relevant, Each each);
  void count_by_scan(const Rows& rows, std::size_t start, const std::int64_t* labels);
  std::size_t position(std::size_t query, Key key) const;

  Rows queries_;
  Metric metric_;
  const std::int64_t* labels_;
  const std::int64_t* exclude_;
  std::size_t threads_;
  bool collecting_ = true;
  std::vector<std::vector<Key>> relevant_;         // (Q,), sorted once counting starts
  std::vector<std::vector<std::int64_t>> counts_;  // (Q,): counts_[q][i] rows lie between relevant i-1 and relevant i
};

}  // namespace iiae
