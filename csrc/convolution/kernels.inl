// The kernels, for the instruction set whose Ops the including file has.

// Groups times four pixels and Vectors times sixteen channels; their sums stay in registers.
template <int Groups, int Vectors>
IIAE_INLINE void multiply_tile(const Product& product, const Bf16* const (&from)[Groups], const Pair* weight, const float* bias,
                               Bf16* const (&to)[Groups], std::size_t channels) {
  constexpr int kPixels = Groups * static_cast<int>(kGroup);
  typename Ops::Vec sums[kPixels][Vectors];
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sums[p][v] = Ops::load(bias + v * kLanes);
  }
  const std::size_t pixel = product.pixel * sizeof(Bf16);
  for (std::size_t r = 0; r < product.rows; ++r) {
    const char* in[Groups];
#pragma GCC unroll 4
    for (int g = 0; g < Groups; ++g) in[g] = reinterpret_cast<const char*>(from[g] + r * product.row);
    for (std::size_t l = 0; l < product.pairs; ++l) {
      typename Ops::Pairs w[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) w[v] = Ops::load(weight + v * kLanes);
      weight += Vectors * kLanes;
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        Ops::template multiply_add<Vectors>(sums[p], w, in[p / kGroup] + (p % kGroup) * pixel);
      }
#pragma GCC unroll 4
      for (int g = 0; g < Groups; ++g) in[g] += sizeof(Pair);
    }
  }
  const std::size_t size = Vectors == 1 ? channels / product.parts : channels - kLanes;  // of a part, or of the last vector
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
    Bf16* out = to[p / kGroup] + (p % kGroup) * product.out_pixel;
    if constexpr (Vectors == 2) {
      Ops::store(sums[p][0], out, 0, kLanes);
      Ops::store(sums[p][1], out + kLanes, 0, size);
    } else {
      Ops::store(sums[p][0], out, 0, size);
      if (product.parts == 2) Ops::store(sums[p][0], out + product.out_row / 2, size, size);
    }
  }
}

// The groups of pixels from `group` on, as long as there are enough for a tile. Returns the first that is left.
template <int Groups, int Vectors>
IIAE_INLINE std::size_t multiply_groups(const Product& product, const Pair* weight, std::size_t first_channel,
                                        std::size_t group) {
  const std::size_t across = product.width / kGroup, groups = product.height * across;
  const std::size_t channels = std::min(product.channels - first_channel, Vectors * kLanes);
  std::size_t y = group / across, x = group % across;
  for (; group + Groups <= groups; group += Groups) {
    const Bf16* from[Groups];
    Bf16* to[Groups];
#pragma GCC unroll 4
    for (int g = 0; g < Groups; ++g) {
      from[g] = product.in + y * product.step * product.row + x * kGroup * product.pixel;
      to[g] = product.out + y * product.out_row + x * kGroup * product.out_pixel + first_channel;
      if (++x == across) {
        x = 0;
        ++y;
      }
    }
    multiply_tile<Groups, Vectors>(product, from, weight, product.bias + first_channel, to, channels);
  }
  return group;
}

void multiply(const Product& product) {
  const Pair* weight = product.weight;
  for (std::size_t channel = 0; channel < product.channels; channel += kBlock) {
    if (product.channels - channel > kLanes) {
      const std::size_t done = multiply_groups<2, 2>(product, weight, channel, 0);
      multiply_groups<1, 2>(product, weight, channel, done);
    } else {
      const std::size_t done = multiply_groups<4, 1>(product, weight, channel, 0);
      multiply_groups<1, 1>(product, weight, channel, done);
    }
    weight += product.rows * product.pairs * kBlock;
  }
}

template <int Rows, int Vectors>
IIAE_INLINE void add_rows(const GradientSum& sum, std::size_t ky, std::size_t row, std::size_t channel, float* out) {
  typename Ops::Vec sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sums[r][v] = Ops::load(out + (r * Vectors + v) * kLanes);
  }
  const std::size_t plane = (sum.steps + sum.plane_row) * sum.kernel_row;
  for (std::size_t piece = 0; piece < sum.pieces; ++piece) {
    const Pair* large = sum.large + (2 * piece + ky % 2) * plane + ky / 2 * sum.plane_row * sum.kernel_row + row;
    const Pair* small = sum.small + piece * sum.steps * sum.channels + channel;
    for (std::size_t t = 0; t < sum.steps; ++t) {
      typename Ops::Pairs w[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) w[v] = Ops::load(small + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) Ops::template multiply_add<Vectors>(sums[r], w, reinterpret_cast<const char*>(large + r));
      large += sum.kernel_row;
      small += sum.channels;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) Ops::store(sums[r][v], out + (r * Vectors + v) * kLanes);
  }
}

template <int Vectors>
IIAE_INLINE float* add_block(const GradientSum& sum, std::size_t channel, float* out) {
  for (std::size_t ky = 0; ky < 4; ++ky) {
    std::size_t row = 0;
    for (; row + 8 <= sum.kernel_row; row += 8, out += 8 * Vectors * kLanes) add_rows<8, Vectors>(sum, ky, row, channel, out);
    for (; row < sum.kernel_row; row += 4, out += 4 * Vectors * kLanes) add_rows<4, Vectors>(sum, ky, row, channel, out);
  }
  return out;
}

void add_gradient(const GradientSum& sum) {
  float* out = sum.sums;
  for (std::size_t channel = 0; channel < sum.channels; channel += kBlock) {
    out = sum.channels - channel > kLanes ? add_block<2>(sum, channel, out) : add_block<1>(sum, channel, out);
  }
}

void pair(const Bf16* first, const Bf16* second, Pair* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = first[i] | static_cast<Pair>(second[i]) << 16;
}

void add(const Bf16* in, float* sums, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) sums[i] += std::bit_cast<float>(static_cast<std::uint32_t>(in[i]) << 16);
}
