#include "cpu/format_choice.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "cpu/candidates.h"

namespace iiae {

namespace {

// How many candidates a query is left with in int8, judged by some queries and rows.
double expected_candidates(const Kernels& kernels, const Problem& problem, const Rows& queries,
                           const std::vector<std::uint32_t>& which, const Piece& piece, std::size_t k) {
  constexpr std::size_t kQueries = 12;
  constexpr std::size_t kRows = 512;
  constexpr Format kFormat = Format::kInt8;
  Strip strip;
  const std::size_t rows = std::min(kRows, piece.count());
  for (std::size_t i = 0; i < rows; ++i) strip.rows.push_back({.id = piece.id(i * piece.count() / rows)});
  pack_strip(kernels, problem, kFormat, piece.rows, strip);
  std::vector<std::uint32_t> some;
  const std::size_t count = std::min(kQueries, which.size());
  for (std::size_t i = 0; i < count; ++i) some.push_back(which[i * which.size() / count]);
  const PackedQueries packed(kernels, problem, kFormat, queries, some, 0, count);
  std::vector<QueryBound> bounds(count);
  std::vector<PackedQueries::Scale> scales(count);
  for (std::size_t q = 0; q < count; ++q) packed.bound(q, strip, std::numeric_limits<double>::infinity(), bounds[q], scales[q]);
  const Intervals interval{kFormat, strip, scales.data()};
  struct Context {
    const Intervals& interval;
    std::vector<std::vector<Candidate>> found;
  } context{interval, std::vector<std::vector<Candidate>>(count)};
  const HitFunction hit = [](void* data, std::size_t query, std::size_t group, std::uint32_t mask, const void* sums) {
    auto& [interval, found] = *static_cast<Context*>(data);
    for (; mask != 0; mask &= mask - 1) {
      const std::size_t row = group * kGroup + static_cast<std::size_t>(std::countr_zero(mask));
      if (row < interval.strip.count) found[query].push_back(interval(query, row, sums));
    }
  };
  const AlignedBytes scratch(count * kGroup * 4);
  kernels.scan({&strip, kFormat, packed.steps(), packed.data(), count, bounds.data(), hit, &context, scratch.get()});
  const std::size_t rank = std::max<std::size_t>(1, k * rows / piece.count());
  double sum = 0.0;
  std::vector<float> costs;
  for (const auto& found : context.found) {
    const double limit = highest_of_best(found, rank, costs);
    sum += static_cast<double>(
        std::count_if(found.begin(), found.end(), [&](const Candidate& candidate) { return candidate.lowest <= limit; }));
  }
  return sum / static_cast<double>(count) / static_cast<double>(rank) * static_cast<double>(k);
}

}  // namespace

Format choose_format(const Kernels& kernels, const Problem& problem, const Rows& queries,
                     const std::vector<std::uint32_t>& which, const Piece& piece, std::size_t k, bool packed) {
  // What a candidate costs, in time for one 4-byte step of one row: reading a row from memory, and a float64 distance.
  constexpr double kStepsPerCandidate = 2000.0;
  constexpr double kStepsPerCandidateColumn = 8.0;
  if (!kernels.fast_int8 && !packed) return Format::kInt16;
  if (problem.width() > max_width(Format::kInt8)) return Format::kInt16;
  const double extra = expected_candidates(kernels, problem, queries, which, piece, k) - static_cast<double>(k);
  const double saved = static_cast<double>(piece.count()) *
                       static_cast<double>(steps(Format::kInt16, problem.width()) - steps(Format::kInt8, problem.width()));
  const double lost = extra * (kStepsPerCandidate + kStepsPerCandidateColumn * static_cast<double>(problem.width()));
  return lost < saved ? Format::kInt8 : Format::kInt16;
}

}  // namespace iiae
