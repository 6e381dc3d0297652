// The k smallest keys of a stream.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "canonical.h"

namespace iiae {

// Sorts keys by their upper halves, the distances, 11 bits at a time; where those are equal, by the rest. `scratch` is as long.
inline void sort_keys(std::vector<Key>& keys, std::vector<Key>& scratch) {
  constexpr std::size_t kFewKeys = 256;
  constexpr unsigned kDigit = 11;
  if (keys.size() < kFewKeys) {
    std::sort(keys.begin(), keys.end());
    return;
  }
  const auto [least, most] = std::minmax_element(keys.begin(), keys.end());
  const Key base = *least >> 32;
  const Key range = (*most >> 32) - base;
  scratch.resize(keys.size());
  for (unsigned shift = 0; shift < 32 && range >> shift != 0; shift += kDigit) {
    const auto digit = [&](Key key) { return ((key >> 32) - base) >> shift & ((1u << kDigit) - 1u); };
    std::uint32_t place[1u << kDigit] = {};
    for (const Key key : keys) ++place[digit(key)];
    std::uint32_t before = 0;
    for (std::uint32_t& count : place) before += std::exchange(count, before);
    for (const Key key : keys) scratch[place[digit(key)]++] = key;
    keys.swap(scratch);
  }
  for (auto begin = keys.begin(); begin != keys.end();) {
    const auto end = std::find_if(begin + 1, keys.end(), [&](Key key) { return key >> 32 != *begin >> 32; });
    if (end - begin > 1) std::sort(begin, end);
    begin = end;
  }
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

  // The k-th smallest key so far; kNoKey while there are fewer.
  Key kth() {
    if (keys_.size() >= k_) shrink();
    return threshold_;
  }

  // The k smallest (or all, if there were fewer), ascending.
  const std::vector<Key>& sorted() {
    if (keys_.size() > k_) shrink();
    std::vector<Key> scratch;
    sort_keys(keys_, scratch);
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
