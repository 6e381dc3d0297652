#include "reconstruction/reconstruction.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "reconstruction/kernels.h"

namespace iiae::reconstruction {

namespace {

constexpr std::size_t kShare = 8 << 10;  // elements of a task: of one sample, so that sums do not depend on threads

const Kernels& kernels() {
#if defined(__x86_64__)
  static const bool wide = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
  }();
  if (wide) return avx512::kKernels;
#endif
  return portable::kKernels;
}

// Calls work(sample, share of it, first element, count) for all of a batch.
template <class Work>
void for_each_share(std::size_t samples, std::size_t elements, const Team& team, const Work& work) {
  const std::size_t shares = (elements + kShare - 1) / kShare;
  run(team, samples * shares, [&](std::size_t task) {
    const std::size_t sample = task / shares, first = task % shares * kShare;
    work(sample, task, sample * elements + first, std::min(kShare, elements - first));
  });
}

}  // namespace

template <class Target>
void compute(const Losses& losses, const Bf16* prediction, const Target* target, float* loss, Bf16* gradient,
             const Team& team) {
  const std::size_t shares = (losses.elements + kShare - 1) / kShare;
  std::vector<double> sums(losses.samples * shares);
  const auto sum = [] {
    if constexpr (std::is_same_v<Target, float>)
      return kernels().with_floats;
    else
      return kernels().with_bytes;
  }();
  for_each_share(losses.samples, losses.elements, team,
                 [&](std::size_t, std::size_t share, std::size_t first, std::size_t count) {
                   sums[share] = sum(losses, prediction + first, target + first, count, gradient ? gradient + first : nullptr);
                 });
  for (std::size_t sample = 0; sample < losses.samples; ++sample) {
    double total = 0.0;
    for (std::size_t share = 0; share < shares; ++share) total += sums[sample * shares + share];
    loss[sample] = static_cast<float>(static_cast<double>(losses.weight) * total);
  }
}

template void compute(const Losses&, const Bf16*, const float*, float*, Bf16*, const Team&);
template void compute(const Losses&, const Bf16*, const std::uint8_t*, float*, Bf16*, const Team&);

void scale(std::size_t samples, std::size_t elements, const float* scale, Bf16* gradient, const Team& team) {
  if (std::all_of(scale, scale + samples, [](float one) { return one == 1.0f; })) return;
  for_each_share(samples, elements, team, [&](std::size_t sample, std::size_t, std::size_t first, std::size_t count) {
    kernels().scale(scale[sample], gradient + first, count);
  });
}

}  // namespace iiae::reconstruction
