// What the engine is given: a metric, and views of rows that Python owns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

// What CUDA kernels use as well.
#ifdef __CUDACC__
#define IIAE_BOTH __host__ __device__
#else
#define IIAE_BOTH
#endif

namespace iiae {

enum class DType { kFloat32, kFloat16, kBFloat16, kFloat64, kUInt8, kInt8 };
enum class Metric { kSqEuclidean, kEuclidean, kCosine, kInnerProduct, kGaussianKL, kGaussianW2 };

// (count, dim) values; the last dimension is contiguous and aligned, rows lie `stride` bytes apart.
struct Rows {
  const std::byte* data;
  std::size_t count;
  std::size_t dim;
  std::size_t stride;
  DType dtype;

  IIAE_BOTH const std::byte* row(std::size_t i) const { return data + i * stride; }
  Rows slice(std::size_t begin, std::size_t end) const { return {row(begin), end - begin, dim, stride, dtype}; }
};

// a * b, or an error that names what would overflow.
inline std::size_t checked_product(std::size_t a, std::size_t b, const char* what) {
  if (b != 0 && a > std::numeric_limits<std::size_t>::max() / b) {
    throw std::overflow_error(std::string(what) + ": " + std::to_string(a) + " x " + std::to_string(b) +
                              " overflows the address space");
  }
  return a * b;
}

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

IIAE_BOTH inline float to_float(BFloat16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

IIAE_BOTH inline float to_float(Half value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(value.bits & 0x7fffu) << 13;
  // Infinity and NaN keep their payload; everything else, subnormals too, is the shifted pattern times 2^112, exactly.
  const std::uint32_t special = (value.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  float scaled;
  std::memcpy(&scaled, &magnitude, sizeof scaled);
  scaled *= 0x1p112f;
  std::uint32_t bits;
  std::memcpy(&bits, &scaled, sizeof bits);
  bits = sign | (special ? (special | magnitude) : bits);
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

IIAE_BOTH inline float to_float(float value) { return value; }
IIAE_BOTH inline double to_double(double value) { return value; }
IIAE_BOTH inline double to_double(float value) { return value; }
IIAE_BOTH inline double to_double(Half value) { return to_float(value); }
IIAE_BOTH inline double to_double(BFloat16 value) { return to_float(value); }
IIAE_BOTH inline double to_double(std::uint8_t value) { return value; }
IIAE_BOTH inline double to_double(std::int8_t value) { return value; }

// Calls f with a typed pointer to the first value of a row.
template <class F>
decltype(auto) with_type(DType dtype, const std::byte* row, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(reinterpret_cast<const float*>(row));
    case DType::kFloat16:
      return f(reinterpret_cast<const Half*>(row));
    case DType::kBFloat16:
      return f(reinterpret_cast<const BFloat16*>(row));
    case DType::kFloat64:
      return f(reinterpret_cast<const double*>(row));
    case DType::kUInt8:
      return f(reinterpret_cast<const std::uint8_t*>(row));
    case DType::kInt8:
      return f(reinterpret_cast<const std::int8_t*>(row));
  }
  throw std::logic_error("unknown dtype");
}

}  // namespace iiae
