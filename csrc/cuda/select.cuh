// Selection and sorting of keys by one block. Keys lie in global memory; every thread of the block takes part.
#pragma once

#include <cuda_runtime.h>

#include "canonical.h"
#include "cuda/canonical.cuh"
#include "cuda/launch.cuh"

namespace iiae::cuda {

inline constexpr unsigned kDigitBits = 8;
inline constexpr unsigned kBins = 1u << kDigitBits;
inline constexpr unsigned kSortKeys = 2048;  // that are sorted in shared memory

// Threads of a block that chooses a query's k best among several times as many: few if those are few, as there are mostly many
// queries.
inline unsigned threads_for_query(std::size_t k) { return k <= kSortKeys / 2 ? 128 : kMostThreads; }

// The bin that the rank-th smallest word is in, and how many words are in bins before it. By the first warp of a block.
__device__ inline void choose_bin(const unsigned* bins, std::size_t rank, unsigned& chosen, std::size_t& before) {
  constexpr unsigned kShare = kBins / kWarp;
  std::size_t own = 0;
  for (unsigned i = 0; i < kShare; ++i) own += bins[threadIdx.x * kShare + i];
  std::size_t below = own;
  for (unsigned step = 1; step < kWarp; step *= 2) {
    const std::size_t other = __shfl_up_sync(kAllLanes, below, step);
    if (threadIdx.x >= step) below += other;
  }
  std::size_t seen = below - own;
  if (seen >= rank || rank > below) return;
  unsigned bin = threadIdx.x * kShare;
  while (seen + bins[bin] < rank) seen += bins[bin++];
  chosen = bin;
  before = seen;
}

// Whether a word agrees with what is known of the chosen one: all digits above the one at `shift`. (Two shifts: one by the
// width of the word is undefined.)
template <class Word>
__device__ inline bool agrees(Word word, Word prefix, int shift) {
  return ((word ^ prefix) >> shift) >> kDigitBits == 0;
}

template <class Word>
__device__ inline unsigned digit(Word word, int shift) {
  return static_cast<unsigned>(word >> shift) % kBins;
}

// The rank-th smallest (1 is the smallest) of n words; value(i) gives word i. Radix selection, the highest digit first.
template <class Word, class Value>
__device__ Word block_select(std::size_t n, std::size_t rank, Value value) {
  __shared__ unsigned bins[kBins];
  __shared__ unsigned chosen;
  __shared__ std::size_t before;
  constexpr int kTopShift = static_cast<int>(8 * sizeof(Word) - kDigitBits);
  Word prefix = 0;
  for (int shift = kTopShift; shift >= 0; shift -= static_cast<int>(kDigitBits)) {
    for (unsigned i = threadIdx.x; i < kBins; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    for (std::size_t i = threadIdx.x; i < n; i += blockDim.x) {
      const Word word = value(i);
      if (agrees(word, prefix, shift)) atomicAdd(&bins[digit(word, shift)], 1u);
    }
    __syncthreads();
    if (threadIdx.x < kWarp) choose_bin(bins, rank, chosen, before);
    __syncthreads();
    prefix |= static_cast<Word>(chosen) << shift;
    rank -= before;
  }
  return prefix;
}

// Sorts kSortKeys or fewer keys in shared memory; `size` is a power of two.
__device__ inline void sort_shared(Key* keys, unsigned size) {
  for (unsigned width = 2; width <= size; width *= 2) {
    for (unsigned step = width / 2; step > 0; step /= 2) {
      for (unsigned i = threadIdx.x; i < size; i += blockDim.x) {
        const unsigned other = i ^ step;
        if (other <= i) continue;
        const bool ascending = (i & width) == 0;
        if ((keys[i] > keys[other]) == ascending) {
          const Key key = keys[i];
          keys[i] = keys[other];
          keys[other] = key;
        }
      }
      __syncthreads();
    }
  }
}

// The number of keys below `key` in a sorted range.
__device__ inline std::size_t rank_of(const Key* keys, std::size_t n, Key key) {
  std::size_t low = 0;
  for (std::size_t high = n; low < high;) {
    const std::size_t middle = (low + high) / 2;
    if (keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Where key i goes when sorted runs of n different keys are merged pairwise: it finds its place by bisection of the other run.
__device__ inline std::size_t merged_place(const Key* keys, std::size_t n, std::size_t run, std::size_t i) {
  const std::size_t own = i / run * run;
  const std::size_t pair = i / (2 * run) * (2 * run);
  const std::size_t other = own == pair ? pair + run : pair;
  const std::size_t other_end = other + run < n ? other + run : n;
  const std::size_t ahead = other < n ? rank_of(keys + other, other_end - other, keys[i]) : 0;
  return pair + (i - own) + ahead;
}

__device__ inline unsigned power_of_two_above(std::size_t n) {
  unsigned size = 2;
  while (size < n) size *= 2;
  return size;
}

// Sorts n different keys, none of them kNoKey; `scratch` is as long and is used from kSortKeys on. Tiles are sorted in shared
// memory, then merged pairwise.
__device__ inline void block_sort(Key* keys, Key* scratch, std::size_t n) {
  __shared__ Key tile[kSortKeys];
  for (std::size_t begin = 0; begin < n; begin += kSortKeys) {
    const std::size_t count = n - begin < kSortKeys ? n - begin : kSortKeys;
    const unsigned size = power_of_two_above(count);
    for (unsigned i = threadIdx.x; i < size; i += blockDim.x) tile[i] = i < count ? keys[begin + i] : kNoKey;
    __syncthreads();
    sort_shared(tile, size);
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) keys[begin + i] = tile[i];
    __syncthreads();
  }
  Key* from = keys;
  Key* to = scratch;
  for (std::size_t run = kSortKeys; run < n; run *= 2) {
    for (std::size_t i = threadIdx.x; i < n; i += blockDim.x) to[merged_place(from, n, run, i)] = from[i];
    __syncthreads();
    Key* const swap = from;
    from = to;
    to = swap;
  }
  if (from == keys) return;
  for (std::size_t i = threadIdx.x; i < n; i += blockDim.x) keys[i] = from[i];
  __syncthreads();
}

// Writes the k smallest of n keys to `out`, sorted, filled up with kNoKey; keys that are kNoKey don't count, the others differ.
// `scratch` has k places, used from kSortKeys on. Returns how many keys there were, at most k.
__device__ inline std::size_t block_select_keys(const Key* keys, std::size_t n, std::size_t k, Key* out, Key* scratch) {
  __shared__ unsigned taken;
  const Key last = n <= k ? kNoKey : block_select<Key>(n, k, [&](std::size_t i) { return keys[i]; });
  if (threadIdx.x == 0) taken = 0;
  __syncthreads();
  for (std::size_t i = threadIdx.x; i < n; i += blockDim.x) {
    const Key key = keys[i];
    if (key <= last && key != kNoKey) out[atomicAdd(&taken, 1u)] = key;
  }
  __syncthreads();
  const std::size_t found = taken;
  block_sort(out, scratch, found);
  for (std::size_t i = found + threadIdx.x; i < k; i += blockDim.x) out[i] = kNoKey;
  __syncthreads();
  return found;
}

}  // namespace iiae::cuda
