// Rows that may still enter the top k, and the intervals in which their costs lie.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/packing.h"
#include "cpu/problem.h"

namespace iiae {

struct Candidate {
  float lowest;  // the cost lies between these
  float highest;
  std::uint32_t id;

  // Rounds the interval outwards: fp32 rounds by at most 2^-24 of a value, and by less than 1e-44 near zero.
  Candidate(double middle, double radius, std::uint32_t row) : id(row) {
    const double room = radius + (std::fabs(middle) + radius) * 0x1p-22 + 1e-44;
    lowest = static_cast<float>(middle - room);
    highest = static_cast<float>(middle + room);
    if (!(lowest <= highest)) {  // NaN or infinity is in it: nothing is known
      lowest = -std::numeric_limits<float>::infinity();
      highest = -lowest;
    }
  }
};

// A cost that the `count` best of the candidates don't exceed; hardly more do not. `costs` is scratch.
inline double highest_of_best(const std::vector<Candidate>& candidates, std::size_t count, std::vector<float>& costs) {
  // Counting costs by bins is several times faster than selecting the exact one, and the upper edge of its bin does as well.
  constexpr std::size_t kBins = 256;
  constexpr std::size_t kCrowdedShare = 16;
  costs.resize(candidates.size());
  float least = std::numeric_limits<float>::infinity();
  float most = -least;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    costs[i] = candidates[i].highest;
    least = std::min(least, costs[i]);
    most = std::max(most, costs[i]);
  }
  const double width = (static_cast<double>(most) - least) / kBins;
  if (std::isfinite(width) && width > 0.0 && candidates.size() > kBins) {
    std::uint32_t bins[kBins + 1] = {};
    const double inverse = 1.0 / width;
    for (const float cost : costs) ++bins[static_cast<std::size_t>((static_cast<double>(cost) - least) * inverse)];
    std::size_t bin = 0;
    std::size_t counted = bins[0];
    while (counted < count) counted += bins[++bin];
    // Twice the width, as rounding may have put a cost into the bin below.
    if (bins[bin] < candidates.size() / kCrowdedShare) {
      return Problem::with_ties(std::min<double>(most, least + width * static_cast<double>(bin + 2)));
    }
  }
  const auto last = costs.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(costs.begin(), last, costs.end());
  return Problem::with_ties(*last);
}

// The intervals of what the kernel reports.
struct Intervals {
  Format format;
  const Strip& strip;
  const PackedQueries::Scale* scales;

  Candidate operator()(std::size_t query, std::size_t row, const void* sums) const {
    const PackedQueries::Scale& scale = scales[query];
    const double sum = format == Format::kFloat32 ? static_cast<double>(static_cast<const float*>(sums)[row % kGroup])
                                                  : static_cast<const std::int32_t*>(sums)[row % kGroup];
    const StripRow& own = strip.rows[row];
    const double unit = scale.unit * strip.scale[row];
    const double middle = scale.offset + strip.offset[row] - unit * (sum - scale.init);
    const double radius = unit * scale.error * own.error_share + scale.slack;
    return {middle, radius, own.id};
  }
};

}  // namespace iiae
