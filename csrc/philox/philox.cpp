#include "philox/philox.h"

#include <algorithm>

namespace iiae::philox {

namespace {

// The largest scale with which no number of 31 bits reaches 1.
constexpr float kScale = 4.6566127342e-10f;

float uniform(std::uint32_t word) {
  const auto bits = static_cast<std::int32_t>(word);
  return static_cast<float>(bits < 0 ? ~bits : bits) * kScale;
}

}  // namespace

void uniforms(std::uint64_t seed, std::uint32_t stream, std::size_t count, float least, float* first, float* second,
              const Team& team) {
  constexpr std::size_t kShare = 4096;
  run(team, (count + kShare - 1) / kShare, [&](std::size_t share) {
    for (std::size_t i = share * kShare; i < std::min(count, (share + 1) * kShare); ++i) {
      std::uint32_t c0 = static_cast<std::uint32_t>(i), c1 = static_cast<std::uint32_t>(std::uint64_t{i} >> 32), c2 = stream,
                    c3 = 0;
      std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
      for (int round = 0; round < 10; ++round) {
        const std::uint64_t a = std::uint64_t{c0} * 0xD2511F53u, b = std::uint64_t{c2} * 0xCD9E8D57u;
        c0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ k0;
        c1 = static_cast<std::uint32_t>(b);
        c2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ k1;
        c3 = static_cast<std::uint32_t>(a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
      }
      first[i] = std::max(uniform(c0), least);
      second[i] = uniform(c1);
    }
  });
}

}  // namespace iiae::philox
