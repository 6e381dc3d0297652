// Exact nearest neighbours of a set of queries in a database that is scanned in one or many pieces.
#pragma once

#include <string>
#include <vector>

#include "cpu/filter.h"
#include "cpu/packing.h"
#include "cpu/results.h"
#include "rows.h"

namespace iiae {

class Searcher {
 public:
  // `queries` and the outputs, both (Q, k), must outlive the searcher; Gaussian queries are lifted already.
  Searcher(const Rows& queries, Metric metric, std::size_t k, std::size_t threads, float* distances, std::int64_t* indices);

  // Considers `rows`, whose first row has index `start`; `packed` holds the same rows packed, or is null.
  void scan(const Rows& rows, std::size_t start, const Filter& filter, const PackedPiece* packed);

  // Completes the outputs: results ascend, and a query with fewer than k permitted rows is filled up with index -1 and distance
  // infinity (negative infinity for inner_product).
  void finish() { results_.fill_up(); }

 private:
  Rows queries_;
  Metric metric_;
  std::size_t k_;
  std::size_t threads_;
  Results results_;
};

enum class Method { kAuto, kBruteForce, kInt8, kInt16, kFloat32 };

// How searches are done: "auto", or always by "brute_force", or by a certified scan in "int8", "int16" or "float32". It changes
// the time they take and nothing else; tests use it to reach every path.
void select_method(const std::string& name);

// Whether packing rows anew pays for this many queries, or what was selected.
Method choose_method(const Kernels& kernels, std::size_t queries, std::size_t rows, std::size_t width);

}  // namespace iiae
