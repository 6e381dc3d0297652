#include "batch_norm/batch_norm.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "batch_norm/kernels.h"

namespace iiae::batch_norm {

namespace {

const Kernels& kernels() {
#if defined(__x86_64__)
  if (convolution::instruction_set() != "scalar") return avx512_bf16::kKernels;
#endif
  return scalar::kKernels;
}

// How a map is gone through: rows of some pixels each, dealt out to the threads.
struct Rows {
  std::size_t together, width, count, shares;

  Rows(const Layer& layer, const Team& team) {
    constexpr std::size_t kWidth = 128;  // numbers at least, where the pixels can be divided so
    together = std::max<std::size_t>(1, kWidth / layer.channels);
    while (layer.pixels % together != 0) --together;
    width = together * layer.channels;
    count = layer.pixels / together;
    shares = std::min<std::size_t>(std::max(team.threads, 1u), count);
  }
  std::size_t begin(std::size_t share) const { return count * share / shares; }

  // A number for each channel, for each number of a row.
  template <class Value>
  std::vector<float> spread(std::size_t channels, const Value& value) const {
    std::vector<float> all(width);
    for (std::size_t i = 0; i < width; ++i) all[i] = i < channels ? value(i) : all[i - channels];
    return all;
  }
};

// Two sums for each channel. add(first, count, sums, others) adds those of some rows, in fp32, to numbers of a row's width; so
// few at a time that the rest can be added up in fp64.
template <class Add>
std::vector<double> two_sums(const Layer& layer, const Rows& rows, const Team& team, const Add& add) {
  constexpr std::size_t kRows = 64;
  const std::size_t channels = layer.channels;
  std::vector<double> totals(rows.shares * 2 * channels);
  run(team, rows.shares, [&](std::size_t share) {
    std::vector<float> sums(2 * rows.width);
    double* total = totals.data() + share * 2 * channels;
    for (std::size_t first = rows.begin(share), last = rows.begin(share + 1); first < last; first += kRows) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      add(first, std::min(kRows, last - first), sums.data(), sums.data() + rows.width);
      for (std::size_t p = 0; p < rows.together; ++p) {
        for (std::size_t c = 0; c < channels; ++c) {
          total[c] += static_cast<double>(sums[p * channels + c]);
          total[channels + c] += static_cast<double>(sums[rows.width + p * channels + c]);
        }
      }
    }
  });
  for (std::size_t share = 1; share < rows.shares; ++share) {
    for (std::size_t c = 0; c < 2 * channels; ++c) totals[c] += totals[share * 2 * channels + c];
  }
  return totals;
}

}  // namespace

void forward(const Layer& layer, const Bf16* x, const Statistics& statistics, Bf16* out, const Team& team) {
  const Kernels& table = kernels();
  const Rows rows(layer, team);
  const std::size_t channels = layer.channels;
  const auto count = static_cast<double>(layer.pixels);
  // Differences from about the mean: their squares hardly cancel, however far from zero all values are.
  constexpr std::size_t kSample = 64;
  const std::size_t sample = std::min(kSample, layer.pixels);
  const std::vector<float> shift = rows.spread(channels, [&](std::size_t c) {
    float sum = 0.0f;
    for (std::size_t i = 0; i < sample; ++i) {
      sum += std::bit_cast<float>(static_cast<std::uint32_t>(x[i * (layer.pixels / sample) * channels + c]) << 16);
    }
    return sum / static_cast<float>(sample);
  });
  const std::vector<double> totals =
      two_sums(layer, rows, team, [&](std::size_t first, std::size_t number, float* sums, float* squares) {
        table.moments(x + first * rows.width, number, rows.width, shift.data(), sums, squares);
      });
  for (std::size_t c = 0; c < channels; ++c) {
    const double off = totals[c] / count, mean = static_cast<double>(shift[c]) + off;
    const double variance = std::max(totals[channels + c] / count - off * off, 0.0);
    statistics.mean[c] = static_cast<float>(mean);
    statistics.inverse_deviation[c] = static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(statistics.epsilon)));
    const auto unbiased = static_cast<float>(variance * count / (count - 1.0));
    statistics.running_mean[c] += statistics.momentum * (statistics.mean[c] - statistics.running_mean[c]);
    statistics.running_variance[c] += statistics.momentum * (unbiased - statistics.running_variance[c]);
  }
  const auto scale = rows.spread(channels, [&](std::size_t c) { return layer.weight[c] * statistics.inverse_deviation[c]; });
  const auto offset = rows.spread(channels, [&](std::size_t c) { return layer.bias[c] - statistics.mean[c] * scale[c]; });
  run(team, rows.shares, [&](std::size_t share) {
    const std::size_t first = rows.begin(share), number = rows.begin(share + 1) - first;
    table.activate(x + first * rows.width, number, rows.width, {scale.data(), offset.data(), layer.slope},
                   out + first * rows.width);
  });
}

// With h the gradient before the activation and n the normalized x, dx = weight / deviation * (h - mean of h - n * mean of h
// n).
void backward(const Layer& layer, const Bf16* x, const float* mean, const float* inverse_deviation, const Bf16* gradient,
              const Gradients& out, const Team& team) {
  const Kernels& table = kernels();
  const Rows rows(layer, team);
  const std::size_t channels = layer.channels;
  const auto count = static_cast<double>(layer.pixels);
  const auto scale = rows.spread(channels, [&](std::size_t c) { return layer.weight[c] * inverse_deviation[c]; });
  const auto offset = rows.spread(channels, [&](std::size_t c) { return layer.bias[c] - mean[c] * scale[c]; });
  const auto means = rows.spread(channels, [&](std::size_t c) { return mean[c]; });
  const Affine affine{scale.data(), offset.data(), layer.slope};
  const std::vector<double> totals =
      two_sums(layer, rows, team, [&](std::size_t first, std::size_t number, float* sums, float* products) {
        table.gradient_sums(x + first * rows.width, gradient + first * rows.width, number, rows.width, affine, means.data(),
                            sums, products);
      });
  std::vector<double> of_x(channels), constant(channels);
  for (std::size_t c = 0; c < channels; ++c) {
    const double inverse = static_cast<double>(inverse_deviation[c]);
    out.bias[c] = static_cast<float>(totals[c]);
    out.weight[c] = static_cast<float>(totals[channels + c] * inverse);
    of_x[c] = -static_cast<double>(scale[c]) * totals[channels + c] / count * inverse * inverse;
    constant[c] = -static_cast<double>(scale[c]) * totals[c] / count - static_cast<double>(mean[c]) * of_x[c];
  }
  const auto of_x_spread = rows.spread(channels, [&](std::size_t c) { return static_cast<float>(of_x[c]); });
  const auto constant_spread = rows.spread(channels, [&](std::size_t c) { return static_cast<float>(constant[c]); });
  run(team, rows.shares, [&](std::size_t share) {
    const std::size_t first = rows.begin(share), number = rows.begin(share + 1) - first, at = first * rows.width;
    table.gradient(x + at, gradient + at, number, rows.width, affine, of_x_spread.data(), constant_spread.data(), out.x + at);
  });
}

}  // namespace iiae::batch_norm
