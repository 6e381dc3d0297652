// The portable kernels: plain C++ that every other instruction set must equal.
#include "cpu/isa.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

// Vectors that are wider than the baseline pass between the functions of this file only.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace iiae::scalar {

namespace {

// 16 lanes as an array; compilers turn the loops into whatever vectors the baseline has.
struct Ops {
  struct Int {
    std::int32_t lane[kGroup];
  };
  struct Float {
    float lane[kGroup];
  };
  using Rows8 = Int;
  static constexpr std::size_t kVecs = 1;
  static constexpr std::size_t kTile = 4;
  static constexpr bool kBias8 = false;
  static constexpr std::size_t kDoubles = 4;

  template <class V>
  static V read(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  template <class Each>
  static auto lanes(Each each) {
    using Value = decltype(each(std::size_t{}));
    std::conditional_t<std::is_same_v<Value, float>, Float, Int> result;
    for (std::size_t i = 0; i < kGroup; ++i) result.lane[i] = each(i);
    return result;
  }
  static Int load(const void* p) { return read<Int>(p); }
  static Float loadf(const void* p) { return read<Float>(p); }
  static void store(void* p, const Int& v) { std::memcpy(p, &v, sizeof v); }
  static void storef(void* p, const Float& v) { std::memcpy(p, &v, sizeof v); }
  static Int set(std::int32_t value) {
    return lanes([&](std::size_t) { return value; });
  }
  static Float setf(float value) {
    return lanes([&](std::size_t) { return value; });
  }
  static Int multiply_add16(const Int& sum, const Int& rows, const std::int32_t* query) {
    const std::int32_t pair = *query;
    return lanes([&](std::size_t i) {
      const std::int32_t low = static_cast<std::int16_t>(rows.lane[i]) * static_cast<std::int16_t>(pair);
      const std::int32_t high = (rows.lane[i] >> 16) * (pair >> 16);
      return sum.lane[i] + (low + high);
    });
  }
  static Rows8 prepare8(const Int& rows) { return rows; }
  static Int multiply_add8(const Int& sum, const Rows8& rows, const std::int32_t* query) {
    const std::int32_t four = *query;
    return lanes([&](std::size_t i) {
      std::int32_t result = sum.lane[i];
      for (int byte = 0; byte < 32; byte += 8) {
        result += static_cast<std::int8_t>(rows.lane[i] >> byte) * static_cast<std::int8_t>(four >> byte);
      }
      return result;
    });
  }
  template <class V>
  static V add(const V& a, const V& b) {
    return lanes([&](std::size_t i) { return a.lane[i] + b.lane[i]; });
  }
  static Float multiply_add(const Float& sum, const Float& a, const Float& b) {
    return lanes([&](std::size_t i) { return sum.lane[i] + a.lane[i] * b.lane[i]; });
  }
  static Float multiply(const Float& a, const Float& b) {
    return lanes([&](std::size_t i) { return a.lane[i] * b.lane[i]; });
  }
  static Float convert(const Int& v) {
    return lanes([&](std::size_t i) { return static_cast<float>(v.lane[i]); });
  }
  static std::uint32_t below(const Float& a, const Float& b) {
    std::uint32_t mask = 0;
    for (std::size_t i = 0; i < kGroup; ++i) mask |= static_cast<std::uint32_t>(a.lane[i] < b.lane[i]) << i;
    return mask;
  }
};

#include "cpu/kernels.inl"

}  // namespace

const Kernels kKernels = make_kernels("scalar", false);

}  // namespace iiae::scalar
