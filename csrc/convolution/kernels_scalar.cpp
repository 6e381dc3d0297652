// The portable kernels: plain C++ that shows what the others compute.
#include <algorithm>
#include <bit>
#include <cstring>

#include "convolution/isa.h"

namespace iiae::convolution::scalar {

namespace {

struct Ops {
  struct Vec {
    float lane[kLanes];
  };
  struct Pairs {
    Pair lane[kLanes];
  };

  static float low(Pair pair) { return std::bit_cast<float>(pair << 16); }
  static float high(Pair pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

  static Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static Pairs load(const Pair* p) {
    Pairs v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(const Vec& v, float* p) { std::memcpy(p, &v, sizeof v); }
  static void store(const Vec& v, Bf16* p, std::size_t first, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) p[i] = round_to_bf16(v.lane[first + i]);
  }
  template <int Vectors>
  static void multiply_add(Vec (&sums)[Vectors], const Pairs (&weight)[Vectors], const char* pair) {
    Pair both;
    std::memcpy(&both, pair, sizeof both);
    for (int v = 0; v < Vectors; ++v) {
      for (std::size_t i = 0; i < kLanes; ++i) {
        sums[v].lane[i] += low(both) * low(weight[v].lane[i]) + high(both) * high(weight[v].lane[i]);
      }
    }
  }
};

#include "convolution/kernels.inl"

void pack(const float* first, const float* second, std::size_t stride, std::size_t count, Pair* out) {
  for (std::size_t i = 0; i < kLanes; ++i) {
    const Bf16 one = first && i < count ? round_to_bf16(first[i * stride]) : 0;
    const Bf16 other = second && i < count ? round_to_bf16(second[i * stride]) : 0;
    out[i] = one | static_cast<Pair>(other) << 16;
  }
}

void pack_rows(const float* rows, std::size_t stride, std::size_t count, std::size_t pairs, Pair* out, std::size_t distance) {
  for (std::size_t p = 0; p < pairs; ++p) pack(rows + 2 * p, rows + 2 * p + 1, stride, count, out + p * distance);
}

}  // namespace

const Kernels kKernels{"scalar", &multiply, &add_gradient, &pair, &add, &pack, &pack_rows};

}  // namespace iiae::convolution::scalar
