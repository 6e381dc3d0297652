// Low-precision copies of rows and queries, with everything that is needed to bound what the low precision costs.
//
// A scan estimates the product of a lifted query p and a lifted row r (see problem.h). Each is written as p = a (P + E): a
// scale, a low-precision vector P, and a residual E whose norm is kept. Then p.r = a_p a_r (P.R + P.E_r + E_p.R + E_p.E_r), and
// by Cauchy-Schwarz P.R is off by at most |E_p||R| + |P + E_p||E_r|, in units of a_p a_r.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "rows.h"

namespace iiae {

// Precision of a scan. Values lie in 4-byte groups ("steps"): one fp32, two int16 or four int8 of consecutive dimensions.
enum class Format { kFloat32, kInt16, kInt8 };

inline constexpr std::size_t kGroup = 16;  // rows that lie interleaved: step s of a group is 16 x 4 bytes, row after row

inline std::size_t values_per_step(Format format) { return format == Format::kFloat32 ? 1 : format == Format::kInt16 ? 2 : 4; }
inline std::size_t steps(Format format, std::size_t width) {
  const std::size_t values = values_per_step(format);
  return (width + values - 1) / values;
}

// Bytes on a cache line boundary.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(std::size_t size) { reserve(size); }
  std::byte* get() const { return data_.get(); }

  // Makes room for `size` bytes; what was there is lost if there was less.
  void reserve(std::size_t size) {
    if (size <= size_) return;
    data_.reset(static_cast<std::byte*>(::operator new(size, std::align_val_t{64})));
    size_ = size;
  }

 private:
  struct Free {
    void operator()(std::byte* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_ = 0;
};

// A row of a strip; the kernels' part of it is kept apart.
struct StripRow {
  double scale = 0.0;        // a
  double offset = 0.0;       // cost of the row alone (see problem.h); NaN: the row cannot be packed
  std::uint32_t id = 0;      // its number in the piece that is scanned
  float error_share = 1.0f;  // of the strip's error bound, its own is at most this
};

// Consecutive groups of packed rows.
struct Strip {
  AlignedBytes data;                 // [group][step][16 rows][4 bytes]; rows past `count` are zero
  std::size_t count = 0;             // rows
  std::size_t groups = 0;            // 16-row groups, the last one filled up
  std::vector<StripRow> rows;        // (count,)
  std::vector<float> inverse_scale;  // (16 groups,) scale_unit / a
  std::vector<float> threshold;      // (16 groups,) offset / a / offset_unit, rounded down; -inf: always a candidate
  double scale_unit = 0.0;           // largest a
  double offset_unit = 0.0;          // largest |offset| / a
  double residual = 0.0;             // largest |E|
  double norm = 0.0;                 // largest |P|
  double lifted_norm = 0.0;          // largest |r|
  double largest_offset = 0.0;
};

// What the kernel compares with: a row is a candidate for a query unless product + init < a * inverse_scale + b * threshold.
struct QueryBound {
  float a;
  float b;
  union {
    float real;
    std::int32_t integer;
  } init;  // float for Format::kFloat32
};

}  // namespace iiae
