// The k smallest keys of a stream.
#pragma once

#include <algorithm>
#include <vector>

#include "canonical.h"

namespace iiae {

// Keeps up to k keys plus as many waiting ones; amortized O(1) per accepted key for any k.
class TopK {
 public:
  explicit TopK(std::size_t k) : k_(k) {}

  void push(Key key) {
    if (key >= threshold_) return;
    keys_.push_back(key);
    if (keys_.size() >= 2 * k_) shrink();
  }

  void merge(const TopK& other) {
    for (const Key key : other.keys_) push(key);
  }

  // The k-th smallest key so far; kNoKey while there are fewer.
  Key kth() {
    if (keys_.size() >= k_) shrink();
    return threshold_;
  }

  // The k smallest (or all, if there were fewer), ascending.
  const std::vector<Key>& sorted() {
    if (keys_.size() > k_) shrink();
    std::sort(keys_.begin(), keys_.end());
    return keys_;
  }

 private:
  void shrink() {
    const auto last = keys_.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
    std::nth_element(keys_.begin(), last, keys_.end());
    threshold_ = *last;
    keys_.resize(k_);
  }

  std::size_t k_;
  Key threshold_ = kNoKey;  // no key above this can still enter
  std::vector<Key> keys_;
};

}  // namespace iiae
