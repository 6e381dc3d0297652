#include "adam/adam.h"

#include <algorithm>
#include <cmath>

#include "target.h"

namespace iiae::adam {

namespace {

constexpr std::size_t kShare = 16 << 10;  // numbers of a task: long against starting it, short against the whole

// What is the same for all numbers of a parameter.
struct Terms {
  float mean_share, beta2, square_share, root, epsilon, step_size;
};

Terms terms_of(const Settings& settings, double step) {
  const auto number = [](double value) { return static_cast<float>(value); };
  return {.mean_share = number(1.0 - settings.beta1),
          .beta2 = number(settings.beta2),
          .square_share = number(1.0 - settings.beta2),
          .root = number(std::sqrt(1.0 - std::pow(settings.beta2, step))),
          .epsilon = number(settings.epsilon),
          .step_size = number(settings.lr / (1.0 - std::pow(settings.beta1, step)))};
}

IIAE_INLINE void update_numbers(const Terms& terms, const float* __restrict gradient, float* __restrict mean,
                                float* __restrict square, float* __restrict values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    mean[i] += (gradient[i] - mean[i]) * terms.mean_share;
    square[i] = square[i] * terms.beta2 + gradient[i] * gradient[i] * terms.square_share;
    values[i] -= terms.step_size * mean[i] / (__builtin_sqrtf(square[i]) / terms.root + terms.epsilon);
  }
}

void update_portable(const Terms& terms, const Parameter& p, std::size_t first, std::size_t count) {
  update_numbers(terms, p.gradient + first, p.mean + first, p.square + first, p.values + first, count);
}

#if defined(__x86_64__)
IIAE_TARGET_BEGIN("avx512f,avx512vl")
void update_avx512(const Terms& terms, const Parameter& p, std::size_t first, std::size_t count) {
  update_numbers(terms, p.gradient + first, p.mean + first, p.square + first, p.values + first, count);
}
IIAE_TARGET_END
#endif

auto choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return &update_avx512;
#endif
  return &update_portable;
}

struct Share {
  std::size_t parameter, first;
};

}  // namespace

void update(const std::vector<Parameter>& parameters, const Settings& settings, const Team& team) {
  static const auto update_share = choose();
  std::vector<Terms> terms;
  std::vector<Share> shares;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    terms.push_back(terms_of(settings, *parameters[i].step += 1.0f));
    for (std::size_t first = 0; first < parameters[i].count; first += kShare) shares.push_back({i, first});
  }
  run(team, shares.size(), [&](std::size_t task) {
    const auto [i, first] = shares[task];
    update_share(terms[i], parameters[i], first, std::min(kShare, parameters[i].count - first));
  });
}

}  // namespace iiae::adam
