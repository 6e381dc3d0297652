// The best rows of every query so far, kept where the caller wants them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "canonical.h"

namespace iiae {

class Results {
 public:
  // Both outputs are (queries, k) and outlive this. Different queries may be used by different threads.
  Results(Metric metric, std::size_t queries, std::size_t k, float* distances, std::int64_t* indices)
      : metric_(metric), k_(k), distances_(distances), indices_(indices), counts_(queries, 0) {}

  std::size_t queries() const { return counts_.size(); }

  // The k-th smallest key so far; kNoKey while there are fewer.
  Key kth(std::size_t query) const { return counts_[query] == k_ ? key(query, k_ - 1) : kNoKey; }

  // Appends the keys of a query, ascending.
  void append_to(std::size_t query, std::vector<Key>& keys) const {
    for (std::size_t i = 0; i < counts_[query]; ++i) keys.push_back(key(query, i));
  }

  // Replaces the keys of a query by these, at most k and ascending.
  void set(std::size_t query, const std::vector<Key>& keys) {
    counts_[query] = keys.size();
    float* const distances = distances_ + query * k_;
    std::int64_t* const indices = indices_ + query * k_;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      distances[i] = key_distance(metric_, keys[i]);
      indices[i] = static_cast<std::int64_t>(keys[i] & 0xffffffffu);
    }
  }

  // Adds these, ascending, as far as they are among the k best; `keys` is scratch afterwards.
  void merge(std::size_t query, std::vector<Key>& keys) {
    const auto middle = static_cast<std::ptrdiff_t>(keys.size());
    append_to(query, keys);
    std::inplace_merge(keys.begin(), keys.begin() + middle, keys.end());
    if (keys.size() > k_) keys.resize(k_);
    set(query, keys);
  }

  // Fills up what is missing with index -1 and distance infinity (negative infinity for inner_product).
  void fill_up() {
    const float missing = (metric_ == Metric::kInnerProduct ? -1.0f : 1.0f) * std::numeric_limits<float>::infinity();
    for (std::size_t query = 0; query < queries(); ++query) {
      std::fill(distances_ + query * k_ + counts_[query], distances_ + (query + 1) * k_, missing);
      std::fill(indices_ + query * k_ + counts_[query], indices_ + (query + 1) * k_, -1);
    }
  }

 private:
  Key key(std::size_t query, std::size_t i) const {
    return make_key(metric_, distances_[query * k_ + i], static_cast<std::uint64_t>(indices_[query * k_ + i]));
  }

  Metric metric_;
  std::size_t k_;
  float* distances_;
  std::int64_t* indices_;
  std::vector<std::size_t> counts_;
};

}  // namespace iiae
