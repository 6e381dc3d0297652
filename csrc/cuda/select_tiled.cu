// Blocks of a grid's first dimension share the keys of a query, its second dimension goes through the queries. Keys differ, as
// they end in an index, so ties need no care.

#include "cuda/select_tiled.cuh"

#include <utility>

#include "cuda/launch.cuh"

namespace iiae::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr std::size_t kTileKeys = 8192;  // of one query, for one block

dim3 grid(std::size_t items, std::size_t per_block, std::size_t count) {
  return dim3(static_cast<unsigned>(blocks_for(items, per_block)),
              static_cast<unsigned>(count < kMostGridRows ? count : kMostGridRows));
}

__device__ std::size_t tile_end(std::size_t begin, std::size_t size, std::size_t n) {
  return begin + size < n ? begin + size : n;
}

// Puts the best keys so far behind the others, and makes the selection ready for its first digit.
__global__ void start_selection_kernel(std::size_t count, Key* keys, std::size_t stride, std::size_t n, std::size_t k,
                                       const Key* best, TiledSelection selection) {
  const std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x;
  for (std::size_t q = blockIdx.y; q < count; q += gridDim.y) {
    if (i < k) keys[q * stride + n + i] = best[q * k + i];
    if (i < kBins) selection.bins[q * kBins + i] = 0;
    if (i != 0) continue;
    selection.prefix[q] = 0;
    selection.rank[q] = k;
    selection.taken[q] = 0;
  }
}

__global__ void count_digits_kernel(std::size_t count, const Key* keys, std::size_t stride, std::size_t n, int shift,
                                    TiledSelection selection) {
  __shared__ unsigned bins[kBins];
  const std::size_t begin = blockIdx.x * kTileKeys;
  const std::size_t end = tile_end(begin, kTileKeys, n);
  for (std::size_t q = blockIdx.y; q < count; q += gridDim.y) {
    const Key prefix = selection.prefix[q];
    for (unsigned i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
    __syncthreads();
    for (std::size_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const Key key = keys[q * stride + i];
      if (agrees(key, prefix, shift)) atomicAdd(&bins[digit(key, shift)], 1u);
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < kBins; i += kThreads) {
      if (bins[i] != 0) atomicAdd(&selection.bins[q * kBins + i], bins[i]);
    }
    __syncthreads();
  }
}

// One block of a warp for one query.
__global__ void choose_digit_kernel(int shift, TiledSelection selection) {
  __shared__ unsigned chosen;
  __shared__ std::size_t before;
  const std::size_t q = blockIdx.x;
  unsigned* const bins = selection.bins + q * kBins;
  choose_bin(bins, selection.rank[q], chosen, before);
  __syncthreads();
  for (unsigned i = threadIdx.x; i < kBins; i += kWarp) bins[i] = 0;
  if (threadIdx.x != 0) return;
  selection.prefix[q] |= static_cast<Key>(chosen) << shift;
  selection.rank[q] -= before;
}

__global__ void take_kernel(std::size_t count, const Key* keys, std::size_t stride, std::size_t n, std::size_t k, Key* best,
                            TiledSelection selection) {
  const std::size_t begin = blockIdx.x * kTileKeys;
  const std::size_t end = tile_end(begin, kTileKeys, n);
  for (std::size_t q = blockIdx.y; q < count; q += gridDim.y) {
    const Key last = selection.prefix[q];
    for (std::size_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const Key key = keys[q * stride + i];
      if (key <= last && key != kNoKey) best[q * k + atomicAdd(&selection.taken[q], 1u)] = key;
    }
  }
}

// Sorts runs of kSortKeys; behind the keys that were taken comes kNoKey.
__global__ void sort_runs_kernel(std::size_t count, std::size_t k, Key* best, TiledSelection selection) {
  __shared__ Key run[kSortKeys];
  const std::size_t begin = blockIdx.x * static_cast<std::size_t>(kSortKeys);
  const std::size_t end = tile_end(begin, kSortKeys, k);
  for (std::size_t q = blockIdx.y; q < count; q += gridDim.y) {
    const std::size_t taken = selection.taken[q];
    const unsigned size = power_of_two_above(end - begin);
    for (unsigned i = threadIdx.x; i < size; i += kThreads) {
      run[i] = begin + i < end && begin + i < taken ? best[q * k + begin + i] : kNoKey;
    }
    __syncthreads();
    sort_shared(run, size);
    for (unsigned i = threadIdx.x; i < end - begin; i += kThreads) best[q * k + begin + i] = run[i];
    __syncthreads();
  }
}

__global__ void merge_runs_kernel(std::size_t count, std::size_t k, std::size_t run, const Key* from, Key* to,
                                  TiledSelection selection) {
  const std::size_t i = blockIdx.x * static_cast<std::size_t>(kThreads) + threadIdx.x;
  for (std::size_t q = blockIdx.y; q < count; q += gridDim.y) {
    const std::size_t taken = selection.taken[q];
    if (i < k) to[q * k + (i < taken ? merged_place(from + q * k, taken, run, i) : i)] = from[q * k + i];
  }
}

__global__ void copy_kernel(std::size_t size, const Key* from, Key* to) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * kThreads;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(kThreads) + threadIdx.x; i < size; i += step) to[i] = from[i];
}

}  // namespace

void keep_best_tiled(std::size_t count, Key* keys, std::size_t stride, std::size_t n, std::size_t k, Key* best, Key* scratch,
                     const TiledSelection& selection, cudaStream_t stream) {
  constexpr std::size_t kCopyBlocks = 4096;
  launch(start_selection_kernel, grid(k < kBins ? kBins : k, kThreads, count), kThreads, 0, stream, count, keys, stride, n, k,
         best, selection);
  const dim3 tiles = grid(n + k, kTileKeys, count);
  for (int shift = static_cast<int>(8 * sizeof(Key) - kDigitBits); shift >= 0; shift -= static_cast<int>(kDigitBits)) {
    launch(count_digits_kernel, tiles, kThreads, 0, stream, count, keys, stride, n + k, shift, selection);
    launch(choose_digit_kernel, static_cast<unsigned>(count), kWarp, 0, stream, shift, selection);
  }
  launch(take_kernel, tiles, kThreads, 0, stream, count, keys, stride, n + k, k, best, selection);
  launch(sort_runs_kernel, grid(k, kSortKeys, count), kThreads, 0, stream, count, k, best, selection);
  Key* from = best;
  Key* to = scratch;
  for (std::size_t run = kSortKeys; run < k; run *= 2) {
    launch(merge_runs_kernel, grid(k, kThreads, count), kThreads, 0, stream, count, k, run, from, to, selection);
    std::swap(from, to);
  }
  if (from == best) return;
  const std::size_t blocks = blocks_for(count * k, kThreads);
  launch(copy_kernel, static_cast<unsigned>(blocks < kCopyBlocks ? blocks : kCopyBlocks), kThreads, 0, stream, count * k, from,
         best);
}

}  // namespace iiae::cuda
