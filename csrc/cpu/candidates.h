// Rows that may still enter the top k, and the intervals in which their costs lie.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/packing.h"
#include "cpu/problem.h"

namespace iiae {

// Where in an interval a cost lies at most, almost always: the interval is Cauchy-Schwarz's, and the parts of a residual are
// about as good as independent of what they are multiplied with, so that errors are normal, and the bound is some sqrt(2 width)
// of their standard deviations. This allows for four.
inline float likely_share(std::size_t width) {
  return static_cast<float>(std::min(1.0, 0.5 + 1.5 / std::sqrt(static_cast<double>(width))));
}

// The candidates of one query, in the order in which they came.
class Candidates {
 public:
  std::size_t size() const { return size_; }
  std::uint32_t id(std::size_t i) const { return ids_[i]; }
  std::size_t room() const { return ids_.size(); }
  void clear() { size_ = 0; }

  // Makes room for so many more.
  void reserve(std::size_t more) {
    if (ids_.size() >= size_ + more) return;
    const std::size_t room = size_ + more + size_ / 2;
    lowest_.resize(room);
    highest_.resize(room);
    ids_.resize(room);
  }

  // Adds a row, for which there is room, whose cost is within `radius` of `middle`.
  void add(std::uint32_t id, double middle, double radius) {
    // Rounded outwards: fp32 rounds by at most 2^-24 of a value, and by less than 1e-44 near zero.
    const double room = radius + (std::fabs(middle) + radius) * 0x1p-22 + 1e-44;
    auto lowest = static_cast<float>(middle - room);
    auto highest = static_cast<float>(middle + room);
    if (!(lowest <= highest)) {  // NaN or infinity is in it: nothing is known
      highest = std::numeric_limits<float>::infinity();
      lowest = -highest;
    }
    ids_[size_] = id;
    lowest_[size_] = lowest;
    highest_[size_] = highest;
    ++size_;
  }

  void add(const Candidates& others) {
    reserve(others.size_);
    const auto append = [&](auto& to, const auto& from) {
      std::copy_n(from.begin(), others.size_, to.begin() + static_cast<std::ptrdiff_t>(size_));
    };
    append(ids_, others.ids_);
    append(lowest_, others.lowest_);
    append(highest_, others.highest_);
    size_ += others.size_;
  }

  // Drops those whose costs must be above `limit`.
  void drop_above(double limit) {
    auto most = static_cast<float>(limit);
    if (most < limit) most = std::nextafter(most, std::numeric_limits<float>::infinity());
    const std::size_t size = std::exchange(size_, 0);
    for (std::size_t i = 0; i < size; ++i) {
      // Without a branch, which nobody could foretell.
      const float lowest = lowest_[i];
      ids_[size_] = ids_[i];
      lowest_[size_] = lowest;
      highest_[size_] = highest_[i];
      size_ += lowest <= most;
    }
  }

  // A cost that the `count` best of them, `count` being at most their number, don't exceed if each costs no more than the point
  // at `share` of its interval; hardly more do not. `costs` is scratch.
  double cost_of_best(std::size_t count, float share, std::vector<float>& costs) const;

 private:
  std::size_t size_ = 0;  // of those below
  std::vector<std::uint32_t> ids_;
  std::vector<float> lowest_;  // the cost lies between these
  std::vector<float> highest_;
};

inline double Candidates::cost_of_best(std::size_t count, float share, std::vector<float>& costs) const {
  // Counting costs by bins is several times faster than selecting the exact one, and the upper edge of its bin does as well.
  constexpr std::size_t kFew = 256;
  constexpr std::size_t kBins = 1024;
  constexpr std::size_t kCrowdedShare = 16;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  costs.resize(size_);
  float least = kInfinity;
  float most = -kInfinity;
  for (std::size_t i = 0; i < size_; ++i) {
    const bool bounded = std::fabs(lowest_[i]) < kInfinity;
    const float cost = bounded ? share * highest_[i] + (1.0f - share) * lowest_[i] : highest_[i];
    costs[i] = cost;
    least = cost < least ? cost : least;
    most = cost > most ? cost : most;
  }
  const double width = (static_cast<double>(most) - least) / kBins;
  if (std::isfinite(width) && width > 0.0 && size_ > kFew) {
    std::uint32_t bins[kBins + 1] = {};
    const double inverse = 1.0 / width;
    for (const float cost : costs) {
      ++bins[static_cast<std::uint32_t>(static_cast<std::int32_t>((static_cast<double>(cost) - least) * inverse))];
    }
    std::size_t bin = 0;
    std::size_t counted = bins[0];
    while (counted < count) counted += bins[++bin];
    // Twice the width, as rounding may have put a cost into the bin below.
    if (bins[bin] < size_ / kCrowdedShare) {
      return Problem::with_ties(std::min<double>(most, least + width * static_cast<double>(bin + 2)));
    }
  }
  const auto last = costs.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(costs.begin(), last, costs.end());
  return Problem::with_ties(*last);
}

// Adds those rows that the kernel found for a query in a strip for which permitted(id) holds.
template <class Permitted>
void add_hits(Format format, const Strip& strip, const PackedQueries::Scale& scale, const Hits& hits, Permitted permitted,
              Candidates& candidates) {
  candidates.reserve(hits.count);
  for (std::size_t i = 0; i < hits.count; ++i) __builtin_prefetch(&strip.rows[hits.rows[i]]);
  for (std::size_t i = 0; i < hits.count; ++i) {
    const StripRow& row = strip.rows[hits.rows[i]];
    if (!permitted(row.id)) continue;
    const std::int32_t bits = hits.sums[i];
    const double sum = format == Format::kFloat32 ? static_cast<double>(std::bit_cast<float>(bits)) : bits;
    const double unit = scale.unit * row.scale;
    const double middle = scale.offset + row.offset - unit * (sum - scale.init);
    const double radius = unit * scale.error * row.error_share + scale.slack;
    candidates.add(row.id, middle, radius);
  }
}

}  // namespace iiae
