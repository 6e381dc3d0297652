// The k smallest keys of a stream.
#pragma once

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "canonical.h"

namespace iiae {

// Leaves the `count` smallest keys, or all, ascending. `scratch` comes to be as long as the keys are.
inline void sort_smallest(std::vector<Key>& keys, std::size_t count, std::vector<Key>& scratch) {
  constexpr std::size_t kFewKeys = 64;
  constexpr unsigned kMaxDigit = 16;
  constexpr std::uint32_t kFewOfBin = 16;
  if (std::is_sorted(keys.begin(), keys.end())) {
    // Nothing to do.
  } else if (keys.size() < kFewKeys) {
    std::sort(keys.begin(), keys.end());
  } else {
    // By bins of distances, about one for every key; then what is in a bin.
    Key least = kNoKey;
    Key most = 0;
    for (const Key key : keys) {
      least = std::min(least, key);
      most = std::max(most, key);
    }
    const Key base = least >> 32;
    const auto range = static_cast<std::uint32_t>((most >> 32) - base);
    const unsigned digit = std::min<unsigned>(static_cast<unsigned>(std::bit_width(keys.size())), kMaxDigit);
    const unsigned width = static_cast<unsigned>(std::bit_width(range));
    const unsigned shift = width > digit ? width - digit : 0;
    const auto bin = [&](Key key) { return static_cast<std::size_t>(((key >> 32) - base) >> shift); };
    std::vector<std::uint32_t> place(bin(most) + 1, 0);
    for (const Key key : keys) ++place[bin(key)];
    std::uint32_t before = 0;
    for (std::uint32_t& bin_count : place) before += std::exchange(bin_count, before);
    scratch.resize(keys.size());
    for (const Key key : keys) scratch[place[bin(key)]++] = key;
    keys.swap(scratch);
    // place[i] is now where bin i ends.
    std::uint32_t begin = 0;
    for (const std::uint32_t end : place) {
      if (end - begin > kFewOfBin) std::sort(keys.begin() + begin, keys.begin() + end);
      begin = end;
      if (begin >= count) break;
    }
    for (std::size_t i = 1; i < begin; ++i) {
      const Key key = keys[i];
      std::size_t at = i;
      for (; at > 0 && keys[at - 1] > key; --at) keys[at] = keys[at - 1];
      keys[at] = key;
    }
  }
  if (keys.size() > count) keys.resize(count);
}

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

  // Those kept, k at least if there were as many, in no order.
  const std::vector<Key>& keys() const { return keys_; }

  // The k-th smallest key so far; kNoKey while there are fewer.
  Key kth() {
    if (keys_.size() >= k_) shrink();
    return threshold_;
  }

  // The k smallest (or all, if there were fewer), ascending.
  const std::vector<Key>& sorted() {
    std::vector<Key> scratch;
    sort_smallest(keys_, k_, scratch);
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
