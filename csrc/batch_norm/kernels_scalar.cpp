// The portable kernels.
#include <bit>
#include <cstring>

#include "batch_norm/kernels.h"
#include "convolution/kernels.h"
#include "target.h"

namespace iiae::batch_norm::scalar {

namespace {

struct Lanes {
  float lane[kLanes] = {};
};

template <class Each>
Lanes lanes(Each each, std::size_t count = kLanes) {
  Lanes v;
  for (std::size_t i = 0; i < count; ++i) v.lane[i] = each(i);
  return v;
}

Lanes operator+(const Lanes& a, const Lanes& b) {
  return lanes([&](std::size_t i) { return a.lane[i] + b.lane[i]; });
}
Lanes operator-(const Lanes& a, const Lanes& b) {
  return lanes([&](std::size_t i) { return a.lane[i] - b.lane[i]; });
}
Lanes operator*(const Lanes& a, const Lanes& b) {
  return lanes([&](std::size_t i) { return a.lane[i] * b.lane[i]; });
}

struct Ops {
  using Vec = Lanes;

  static Vec all(float value) {
    return lanes([&](std::size_t) { return value; });
  }
  static Vec load(const float* p, std::size_t n) {
    return lanes([&](std::size_t i) { return p[i]; }, n);
  }
  static Vec load(const Bf16* p, std::size_t n) {
    return lanes([&](std::size_t i) { return std::bit_cast<float>(static_cast<std::uint32_t>(p[i]) << 16); }, n);
  }
  static void store(const Vec& v, float* p, std::size_t n) { std::memcpy(p, v.lane, n * sizeof(float)); }
  static void store(const Vec& v, Bf16* p, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) p[i] = convolution::round_to_bf16(v.lane[i]);
  }
  static Vec where_positive(const Vec& x, const Vec& a, const Vec& b) {
    return lanes([&](std::size_t i) { return x.lane[i] > 0.0f ? a.lane[i] : b.lane[i]; });
  }
};

#include "batch_norm/kernels.inl"

}  // namespace

const Kernels kKernels{&moments, &activate, &gradient_sums, &gradient};

}  // namespace iiae::batch_norm::scalar
