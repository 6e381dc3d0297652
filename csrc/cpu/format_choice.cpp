#include "cpu/format_choice.h"

#include <algorithm>
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
  HitLists lists(count, strip.groups);
  const AlignedBytes scratch(count * kGroup * 4);
  kernels.scan(
      {&strip, 0, strip.groups, kFormat, packed.steps(), packed.data(), count, bounds.data(), lists.get(), scratch.get()});
  const std::size_t rank = std::max<std::size_t>(1, k * rows / piece.count());
  double sum = 0.0;
  std::vector<float> costs;
  Candidates found;
  for (std::size_t q = 0; q < count; ++q) {
    found.clear();
    const Hits hits = lists[q].taken(strip.count);
    add_hits(kFormat, strip, scales[q], hits, [](auto) { return true; }, found);
    found.drop_above(found.cost_of_best(rank, likely_share(problem.width()), costs));
    sum += static_cast<double>(found.size());
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
