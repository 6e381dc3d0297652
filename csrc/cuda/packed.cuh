// How rows and queries lie in device memory for the scan.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace iiae::cuda {

// A tile is 128 vectors; its values lie as [chunk of 64 dimensions][vector][64 bytes], filled up with zeros, so that what a
// stage of the scan copies is contiguous and is read from shared memory without bank conflicts.
inline constexpr std::size_t kTileVectors = 128;
inline constexpr std::size_t kChunk = 64;

// Rows are dealt out: of T tiles, tile t has rows t, t + T, t + 2T, ... So every tile is a sample of the whole piece, whatever
// order its rows are in.
__host__ __device__ inline std::size_t dealt_row(std::size_t tiles, std::size_t tile, std::size_t place) {
  return place * tiles + tile;
}

// Takes arrays from one allocation, each on a boundary of 256 bytes; from a null base it only adds up.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}

  template <class T>
  T* take(std::size_t count) {
    auto* result = base_ ? reinterpret_cast<T*>(base_ + size_) : nullptr;
    size_ += (count * sizeof(T) + 255) / 256 * 256;
    return result;
  }
  std::size_t size() const { return size_; }

 private:
  std::byte* base_;
  std::size_t size_ = 0;
};

// Maxima over the rows of a piece, as the bits of non-negative doubles, which are ordered like them.
struct Units {
  unsigned long long scale;   // largest a
  unsigned long long offset;  // largest |offset| / a
  unsigned long long norm;    // largest |r|
  double centre_norm;         // |c|
};

__device__ inline double as_double(unsigned long long bits) { return __longlong_as_double(static_cast<long long>(bits)); }

struct PackedRows {
  std::size_t count;
  std::size_t tiles;
  std::size_t chunks;
  std::int8_t* values;    // [tile][chunk][vector][64]
  double* scale;          // (tiles * 128,) a; by place, as all that follow
  double* offset;         // cost of the row alone; NaN: it has no bound (a zero vector under cosine)
  float* inverse_scale;   // Units::scale / a
  float* threshold;       // offset / a / Units::offset, rounded down; -inf: always a candidate
  float* tile_norm;       // (tiles,) largest |P|
  float* tile_residual;   // (tiles,) largest |E|
  double* centre;         // (width,) c
  double* sample_factor;  // of the rows that c is the mean of
  Units* units;

  PackedRows(std::size_t count, std::size_t width, Carver& memory);
};

// A row is a candidate for a query unless product + init < a * inverse_scale + b * threshold, where
// init = residual * tile_norm + norm * tile_residual + a constant for roundings.
struct QueryBound {
  float a;  // +inf: no row is a candidate
  float b;
  float norm;      // |P| + |E|, rounded up
  float residual;  // |E|, rounded up
};

// A query as the scan knows it.
struct QueryState {
  double offset;  // of its cost
  double scale;   // a
  double lifted_norm;
  double norm;      // |P| + |E|
  double residual;  // |E|
  double slack;     // float64 rounding of what depends on the query alone, in cost
  double limit;     // rows of a higher cost can't be among the k nearest: proven by k rows that were seen
};

// For fp32 and int32 roundings of a sum, in units of the scales: see PackedQueries::bound() of the CPU.
inline constexpr float kSumRoom = 1024.0f;

}  // namespace iiae::cuda
