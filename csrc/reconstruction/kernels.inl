// The kernels. Nothing here branches on a value, so that loops become vectors.

constexpr std::size_t kBlock = 512;  // elements whose losses are kept before they are summed
constexpr std::size_t kLanes = 16;

IIAE_INLINE float to_float(Bf16 bits) { return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16); }

// To the nearest, ties to even; infinities and NaN stay what they are.
IIAE_INLINE Bf16 to_bf16(float value) {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16, nan = bits >> 16 | 0x40u;
  return static_cast<Bf16>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

IIAE_INLINE float wanted(float target) { return target; }
IIAE_INLINE float wanted(std::uint8_t target) { return static_cast<float>(target) / 127.5f - 1.0f; }

// tanh x = 1 - 2 / (e^2x + 1) for large |x|, where nothing cancels, and a polynomial for small ones (both as in Cephes' tanhf);
// e^y = 2^n e^r with |r| <= ln 2 / 2. Within 2 units in the last place of fp32; NaN stays NaN.
IIAE_INLINE float tanh_of(float x) {
  const float size = __builtin_fabsf(x), square = x * x;
  const float small =
      x + x * square *
              (-3.33332819422e-1f +
               square * (1.33314422036e-1f +
                         square * (-5.37397155531e-2f + square * (2.06390887954e-2f + square * -5.70498872745e-3f))));
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to a whole number
  const float y = size > 10.0f ? 20.0f : 2.0f * size;
  const float shifted = y * 1.44269504089f + kRound, n = shifted - kRound;
  const float r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  const float power =
      1.0f + r +
      r * r * (0.5f + r * (1.66666671634e-1f + r * (4.16664853692e-2f + r * (8.33336077630e-3f + r * 1.39316846e-3f))));
  const std::uint32_t exponent = (__builtin_bit_cast(std::uint32_t, shifted) + 127u) << 23;
  const float large = 1.0f - 2.0f / (power * __builtin_bit_cast(float, exponent) + 1.0f);
  return size < 0.625f ? small : __builtin_copysignf(large, x);
}

template <bool Gaussian, bool Tanh, bool Write, class Target>
IIAE_INLINE double sum_block(float weight, const Bf16* __restrict prediction, const Target* __restrict target,
                             std::size_t count, Bf16* __restrict gradient) {
  float terms[kBlock];
  for (std::size_t i = 0; i < count; ++i) {
    const float raw = to_float(prediction[i]), value = Tanh ? tanh_of(raw) : raw;
    const float difference = value - wanted(target[i]);
    terms[i] = Gaussian ? difference * difference : __builtin_fabsf(difference);
    if constexpr (Write) {
      const float sign = static_cast<float>(difference > 0.0f) - static_cast<float>(difference < 0.0f);
      const float slope = (Gaussian ? 2.0f * difference : sign) * weight;
      gradient[i] = to_bf16(Tanh ? slope * (1.0f - value * value) : slope);
    }
  }
  for (std::size_t i = count; i < kBlock; ++i) terms[i] = 0.0f;
  float lanes[kLanes] = {};
  for (std::size_t i = 0; i < kBlock; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += terms[i + lane];
  }
  double sum = 0.0;
  for (std::size_t lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(lanes[lane]);
  return sum;
}

template <bool Gaussian, bool Tanh, bool Write, class Target>
double sum_blocks(float weight, const Bf16* prediction, const Target* target, std::size_t count, Bf16* gradient) {
  double sum = 0.0;
  for (std::size_t first = 0; first < count; first += kBlock) {
    const std::size_t now = count - first < kBlock ? count - first : kBlock;
    sum +=
        sum_block<Gaussian, Tanh, Write>(weight, prediction + first, target + first, now, Write ? gradient + first : nullptr);
  }
  return sum;
}

template <class Target>
double sum_losses(const Losses& losses, const Bf16* prediction, const Target* target, std::size_t count, Bf16* gradient) {
  const auto choose = [&](auto gaussian, auto tanh) {
    constexpr bool kGaussian = decltype(gaussian)::value, kTanh = decltype(tanh)::value;
    return gradient ? sum_blocks<kGaussian, kTanh, true>(losses.weight, prediction, target, count, gradient)
                    : sum_blocks<kGaussian, kTanh, false>(losses.weight, prediction, target, count, gradient);
  };
  using Yes = std::true_type;
  using No = std::false_type;
  if (losses.likelihood == Likelihood::kGaussian) return losses.tanh ? choose(Yes{}, Yes{}) : choose(Yes{}, No{});
  return losses.tanh ? choose(No{}, Yes{}) : choose(No{}, No{});
}

void scale_values(float scale, Bf16* values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] = to_bf16(to_float(values[i]) * scale);
}
