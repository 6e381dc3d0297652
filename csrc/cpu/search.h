// Exact nearest neighbours of a set of queries in a database that is scanned in one or many pieces.
#pragma once

#include <string>
#include <vector>

#include "cpu/filter.h"
#include "cpu/top_k.h"
#include "rows.h"

namespace iiae {

class Searcher {
 public:
  // `queries` must outlive the searcher; Gaussian queries are lifted already.
  Searcher(const Rows& queries, Metric metric, std::size_t k, std::size_t threads);

  // Considers `rows`, whose first row has index `start`.
  void scan(const Rows& rows, std::size_t start, const Filter& filter);

  // Writes (Q, k) results, ascending; a query with fewer than k permitted rows is filled up with index -1 and distance
  // infinity (negative infinity for inner_product).
  void write(float* distances, std::int64_t* indices);

 private:
  Rows queries_;
  Metric metric_;
  std::size_t k_;
  std::size_t threads_;
  std::vector<TopK> best_;  // (Q,)
};

// How searches are done: "auto", or always by "brute_force", or by a certified scan in "int8", "int16" or "float32". It changes
// the time they take and nothing else; tests use it to reach every path.
void select_method(const std::string& name);

}  // namespace iiae
