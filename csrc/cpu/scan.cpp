// For every query the scan keeps a limit: a cost that the k-th best pair is proven not to exceed. Rows whose cost, by the error
// bound of the low-precision product, may lie under the limit become candidates; the k-th smallest upper bound among the
// candidates lowers the limit. What is left at the end is measured canonically.
//
// For large k the limit would start high and most candidates would be in vain, so it starts from a guess: the cost at the rank
// of a small sample that k corresponds to, and a margin. The guess is proven afterwards, by the k-th canonical distance; a
// query for which that fails (about one in a thousand) is searched again by brute force.

#include "cpu/scan.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "cpu/packing.h"
#include "cpu/parallel.h"
#include "cpu/problem.h"

namespace iiae {

namespace {

constexpr double kOpen = std::numeric_limits<double>::infinity();
constexpr std::size_t kBatch = 48;             // queries of one task; a multiple of every tile
constexpr std::size_t kStateBytes = 96 << 20;  // packed queries and candidates at a time
constexpr std::size_t kTasksPerThread = 3;     // so that threads finish together
constexpr std::size_t kSampleShare = 25;       // a sample is at most this share of the rows ...
constexpr std::size_t kSampleRank = 16;        // ... and not larger than makes k of all rows correspond to this many of it
constexpr std::size_t kLeastSampleRank = 4;

struct Candidate {
  double lowest;  // the cost lies between these
  double highest;
  std::uint32_t id;
};

// A cost that the `count` best of the candidates don't exceed.
double highest_of_best(std::vector<Candidate>& candidates, std::size_t count) {
  const auto last = candidates.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(candidates.begin(), last, candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.highest < b.highest; });
  return last->highest;
}

// What one task knows about one query.
struct State {
  double limit = kOpen;
  std::vector<Candidate> candidates;
  TopK found;  // candidates that had to be measured early

  explicit State(std::size_t k) : found(k) {}
};

class Scan {
 public:
  Scan(const Kernels& kernels, Format format, Metric metric, const Rows& queries, const Piece& piece, const Filter& filter,
       std::size_t k, std::size_t threads, const PackedPiece* packed, std::vector<TopK>& best)
      : kernels_(kernels),
        format_(format),
        metric_(metric),
        queries_(queries),
        piece_(piece),
        filter_(filter),
        k_(k),
        threads_(threads),
        best_(best),
        packed_(packed),
        own_problem_(packed ? std::nullopt : std::optional<Problem>(std::in_place, kernels, metric, piece.rows)),
        problem_(packed ? packed->problem : *own_problem_) {}

  // Searches for the queries that `which` names; returns those that could not be certified.
  std::vector<std::uint32_t> run(const std::vector<std::uint32_t>& which);

 private:
  struct Task;  // the context of a hit

  std::size_t capacity() const { return 2 * k_ + 8; }
  void seed(std::size_t step, std::size_t rank);
  void scan_chunk(const Strip* strips, std::size_t count);
  void scan_batch(std::size_t batch, std::size_t part, const Strip* strips, std::size_t count);
  bool finish(std::size_t query);
  void tighten(std::uint32_t query, State& state) const;
  void measure(std::uint32_t query, const std::vector<Candidate>& candidates, TopK& found) const;
  State& state(std::size_t query, std::size_t part) { return states_[query * parts_ + part]; }
  static void on_hit(void* context, std::size_t query, std::size_t group, std::uint32_t mask, const void* sums);

  const Kernels& kernels_;
  Format format_;
  Metric metric_;
  const Rows& queries_;
  const Piece& piece_;
  const Filter& filter_;
  std::size_t k_;
  std::size_t threads_;
  std::vector<TopK>& best_;
  const PackedPiece* packed_;
  std::optional<Problem> own_problem_;
  const Problem& problem_;

  std::vector<Strip> strips_;  // of the chunk at hand

  // The queries at hand.
  std::vector<std::uint32_t> which_;
  std::vector<std::unique_ptr<PackedQueries>> batches_;
  std::size_t parts_ = 1;      // tasks that share the rows of a chunk, each with its own state
  std::vector<State> states_;  // (which_, parts_)
  std::vector<double> limit_;  // (which_,) what earlier pieces prove
  std::vector<double> guess_;  // (which_,) what the sample leads to expect
};

struct Scan::Task {
  Scan& scan;
  std::size_t first;  // query of the batch
  std::size_t part;
  const Strip* strip;
  const PackedQueries& queries;
  QueryBound* bounds;
  PackedQueries::Scale* scales;

  // Interval of the cost of a row of the strip.
  Candidate candidate(std::size_t query, std::size_t row, const void* sums) const {
    const PackedQueries::Scale& scale = scales[query];
    double sum;
    if (scan.format_ == Format::kFloat32) {
      sum = static_cast<const float*>(sums)[row % kGroup];
    } else {
      sum = static_cast<const std::int32_t*>(sums)[row % kGroup];
    }
    const double unit = scale.unit * strip->scale[row];
    const double middle = scale.offset + strip->offset[row] - unit * (sum - scale.init);
    const double radius = unit * scale.error + scale.slack;
    if (std::isnan(middle)) return {-kOpen, kOpen, strip->ids[row]};
    return {middle - radius, middle + radius, strip->ids[row]};
  }

  // Calls each(candidate) for the rows of a hit that the query may be given.
  template <class Each>
  void for_each(std::size_t query, std::size_t group, std::uint32_t mask, const void* sums, Each each) const {
    for (; mask != 0; mask &= mask - 1) {
      const std::size_t row = group * kGroup + static_cast<std::size_t>(std::countr_zero(mask));
      if (row >= strip->count) return;
      const std::uint32_t id = strip->ids[row];
      if (scan.filter_.passes(scan.which_[first + query], id, scan.piece_.start + id)) each(candidate(query, row, sums));
    }
  }
};

void Scan::on_hit(void* context, std::size_t query, std::size_t group, std::uint32_t mask, const void* sums) {
  const Task& task = *static_cast<Task*>(context);
  Scan& scan = task.scan;
  State& state = scan.state(task.first + query, task.part);
  task.for_each(query, group, mask, sums, [&](const Candidate& candidate) {
    if (candidate.lowest > state.limit) return;
    state.candidates.push_back(candidate);
    if (state.candidates.size() < scan.capacity()) return;
    scan.tighten(scan.which_[task.first + query], state);
    task.queries.bound(query, *task.strip, state.limit, task.bounds[query], task.scales[query]);
  });
}

void Scan::scan_batch(std::size_t batch, std::size_t part, const Strip* strips, std::size_t count) {
  const PackedQueries& queries = *batches_[batch];
  std::vector<QueryBound> bounds(queries.count());
  std::vector<PackedQueries::Scale> scales(queries.count());
  const AlignedBytes scratch(queries.count() * kGroup * 4);
  for (const Strip* strip = strips; strip != strips + count; ++strip) {
    Task task{*this, batch * kBatch, part, strip, queries, bounds.data(), scales.data()};
    for (std::size_t q = 0; q < queries.count(); ++q) {
      queries.bound(q, *strip, state(task.first + q, part).limit, bounds[q], scales[q]);
    }
    kernels_.scan(
        {strip, format_, queries.steps(), queries.data(), queries.count(), bounds.data(), &on_hit, &task, scratch.get()});
  }
}

void Scan::scan_chunk(const Strip* strips, std::size_t count) {
  parallel_for(batches_.size() * parts_, threads_, [&](std::size_t task) {
    const std::size_t part = task % parts_;
    const std::size_t begin = part * count / parts_;
    const std::size_t end = (part + 1) * count / parts_;
    scan_batch(task / parts_, part, strips + begin, end - begin);
  });
}

// Guesses limits from the costs in a sample, every step-th row: that of the sample's neighbour of the given rank.
void Scan::seed(std::size_t step, std::size_t rank) {
  const std::size_t count = pack_rows(kernels_, problem_, format_, piece_, 0, piece_.count(), step, threads_, strips_);
  const std::size_t k = std::exchange(k_, rank);
  parallel_for(batches_.size(), threads_, [&](std::size_t batch) {
    scan_batch(batch, 0, strips_.data(), count);
    for (std::size_t q = batch * kBatch; q < std::min((batch + 1) * kBatch, which_.size()); ++q) {
      auto& candidates = state(q, 0).candidates;
      if (candidates.size() >= rank) guess_[q] = Problem::with_ties(highest_of_best(candidates, rank));
      // Only the guess is kept: the scan meets the sampled rows again, those measured early included.
      for (std::size_t part = 0; part < parts_; ++part) {
        state(q, part) = State(k);
        state(q, part).limit = std::min(limit_[q], guess_[q]);
      }
    }
  });
  k_ = k;
}

// Lowers the limit by what the candidates prove, and drops those above it.
void Scan::tighten(std::uint32_t query, State& state) const {
  auto& candidates = state.candidates;
  if (candidates.size() >= k_) state.limit = std::min(state.limit, Problem::with_ties(highest_of_best(candidates, k_)));
  std::erase_if(candidates, [&](const Candidate& candidate) { return candidate.lowest > state.limit; });
  if (candidates.size() < k_ + (capacity() - k_) / 2) return;
  // The bounds are too wide to tell these apart.
  measure(query, candidates, state.found);
  candidates.clear();
  const Key kth = state.found.kth();
  if (kth != kNoKey) state.limit = std::min(state.limit, problem_.highest_cost(key_distance(metric_, kth)));
}

void Scan::measure(std::uint32_t query, const std::vector<Candidate>& candidates, TopK& found) const {
  const CanonicalQuery canonical(kernels_, metric_, queries_, query);
  const std::size_t dim = piece_.rows.dim;
  std::vector<double> row(dim);
  // Candidates lie anywhere in memory; the processor itself only looks ahead within a row.
  constexpr std::size_t kAhead = 4;
  const std::size_t prefetched = std::min<std::size_t>(piece_.rows.stride, 512);
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (i + kAhead < candidates.size()) {
      const std::byte* next = piece_.rows.row(candidates[i + kAhead].id);
      for (std::size_t line = 0; line < prefetched; line += 64) __builtin_prefetch(next + line);
    }
    const std::uint32_t id = candidates[i].id;
    const double sq_norm = kernels_.load_row(piece_.rows, id, metric_, row.data());
    const double distance = kernels_.distance(metric_, dim, canonical.values.data(), canonical.sq_norm, row.data(), sq_norm);
    found.push(make_key(metric_, distance, piece_.start + id));
  }
}

// Measures what is left of a query; false if its guess did not hold, with nothing changed.
bool Scan::finish(std::size_t query) {
  State& all = state(query, 0);
  for (std::size_t part = 1; part < parts_; ++part) {
    State& other = state(query, part);
    all.limit = std::min(all.limit, other.limit);
    all.candidates.insert(all.candidates.end(), other.candidates.begin(), other.candidates.end());
    all.found.merge(other.found);
  }
  tighten(which_[query], all);
  measure(which_[query], all.candidates, all.found);
  TopK merged = best_[which_[query]];
  merged.merge(all.found);
  if (guess_[query] != kOpen) {
    const Key kth = merged.kth();
    if (kth == kNoKey || problem_.highest_cost(key_distance(metric_, kth)) > guess_[query]) return false;
  }
  best_[which_[query]] = std::move(merged);
  return true;
}

std::vector<std::uint32_t> Scan::run(const std::vector<std::uint32_t>& which) {
  which_ = which;
  const std::size_t batch_count = (which.size() + kBatch - 1) / kBatch;
  parts_ = std::clamp<std::size_t>(kTasksPerThread * threads_ / batch_count, 1,
                                   (piece_.count() + kGroup - 1) / strip_rows(format_, problem_.width()) + 1);
  batches_.resize(batch_count);
  parallel_for(batch_count, threads_, [&](std::size_t batch) {
    const std::size_t first = batch * kBatch;
    const std::size_t count = std::min(kBatch, which_.size() - first);
    batches_[batch] = std::make_unique<PackedQueries>(kernels_, problem_, format_, queries_, which_, first, count);
  });
  states_.assign(which.size() * parts_, State(k_));
  limit_.assign(which.size(), kOpen);
  guess_.assign(which.size(), kOpen);
  for (std::size_t q = 0; q < which.size(); ++q) {
    const Key kth = best_[which[q]].kth();
    if (kth != kNoKey) limit_[q] = problem_.highest_cost(key_distance(metric_, kth));
    for (std::size_t part = 0; part < parts_; ++part) state(q, part).limit = limit_[q];
  }
  const std::size_t step = std::max(kSampleShare, k_ / kSampleRank);
  const std::size_t expected = k_ / step;
  if (expected >= kLeastSampleRank && piece_.count() >= 4 * k_) {
    // Four standard deviations above what is expected.
    seed(step, expected + 1 + static_cast<std::size_t>(4.0 * std::sqrt(static_cast<double>(expected))));
  }
  if (packed_) {
    scan_chunk(packed_->strips.data(), packed_->strips.size());
  } else {
    for_each_chunk(kernels_, problem_, format_, piece_, threads_, strips_,
                   [&](const Strip* strips, std::size_t count) { scan_chunk(strips, count); });
  }
  std::vector<std::uint8_t> certified(which.size());
  parallel_for(which.size(), threads_, [&](std::size_t q) { certified[q] = finish(q); });
  std::vector<std::uint32_t> failed;
  for (std::size_t q = 0; q < which.size(); ++q) {
    if (!certified[q]) failed.push_back(which[q]);
  }
  return failed;
}

}  // namespace

void certified_scan(const Kernels& kernels, Format format, Metric metric, const Rows& queries,
                    const std::vector<std::uint32_t>& which, const Piece& piece, const Filter& filter, std::size_t k,
                    std::size_t threads, const PackedPiece* packed, std::vector<TopK>& best) {
  Scan scan(kernels, format, metric, queries, piece, filter, k, threads, packed, best);
  const std::size_t width = queries.dim;
  const std::size_t per_query = 4 * steps(format, width) + 3 * k * sizeof(Candidate) + 1024;
  const std::size_t at_once = std::max<std::size_t>(1, kStateBytes / per_query / kBatch) * kBatch;
  std::vector<std::uint32_t> failed;
  for (std::size_t first = 0; first < which.size(); first += at_once) {
    const auto begin = which.begin() + static_cast<std::ptrdiff_t>(first);
    const auto end = which.begin() + static_cast<std::ptrdiff_t>(std::min(first + at_once, which.size()));
    const auto uncertified = scan.run({begin, end});
    failed.insert(failed.end(), uncertified.begin(), uncertified.end());
  }
  brute_force(kernels, metric, queries, failed, piece, filter, k, threads, best);
}

}  // namespace iiae
