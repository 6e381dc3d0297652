// For every query the scan keeps a limit. Rows whose cost, by the error bound of the low-precision product, may lie under it
// become candidates; when their list has grown too long, the limit is lowered and the list cut. What is left at the end is
// measured canonically.
//
// A limit is proven by k candidates: the k-th smallest of their upper bounds. Long before k good ones are known, it is guessed:
// every strip is a sample of all rows (see Deal), so after a share s of the rows, about s k of the k nearest have been seen,
// and the cost at that rank plus a margin is unlikely to be below the k-th of all. A guess is proven in the end by the k-th
// canonical distance; a query for which that fails (a few in a thousand) is searched again without guesses.

#include "cpu/scan.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>

#include "cpu/packing.h"
#include "cpu/parallel.h"
#include "cpu/problem.h"

namespace iiae {

namespace {

constexpr double kOpen = std::numeric_limits<double>::infinity();
constexpr std::size_t kBatch = 48;             // queries of one task; a multiple of every tile
constexpr std::size_t kStateBytes = 96 << 20;  // packed queries and candidates at a time
constexpr std::size_t kTasksPerThread = 3;     // so that threads finish together
constexpr std::size_t kSpareRoom = 32;         // for candidates, where few are expected

struct Candidate {
  float lowest;  // the cost lies between these
  float highest;
  std::uint32_t id;

  // Rounds the interval outwards: fp32 rounds by at most 2^-24 of a value, and by less than 1e-44 near zero.
  Candidate(double middle, double radius, std::uint32_t row) : id(row) {
    const double room = radius + std::fabs(middle) * 0x1p-22 + 1e-44;
    lowest = static_cast<float>(middle - room);
    highest = static_cast<float>(middle + room);
    if (std::isnan(middle)) {
      lowest = -std::numeric_limits<float>::infinity();
      highest = -lowest;
    }
  }
};

// A cost that the `count` best of the candidates don't exceed; hardly more do not. `costs` is scratch.
double highest_of_best(const std::vector<Candidate>& candidates, std::size_t count, std::vector<float>& costs) {
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

// What one task knows about one query.
struct State {
  double limit = kOpen;
  double guess = kOpen;  // the lowest limit that was not proven
  std::size_t room = kSpareRoom;
  std::vector<Candidate> candidates;
  TopK found;  // candidates that had to be measured early

  explicit State(std::size_t k) : found(k) {}
};

// The intervals of what the kernel reports.
struct Intervals {
  Format format;
  const Strip& strip;
  const PackedQueries::Scale* scales;

  Candidate operator()(std::size_t query, std::size_t row, const void* sums) const {
    const PackedQueries::Scale& scale = scales[query];
    const double sum = format == Format::kFloat32 ? static_cast<double>(static_cast<const float*>(sums)[row % kGroup])
                                                  : static_cast<const std::int32_t*>(sums)[row % kGroup];
    const double unit = scale.unit * strip.scale[row];
    const double middle = scale.offset + strip.offset[row] - unit * (sum - scale.init);
    const double radius = unit * scale.error + scale.slack;
    return {middle, radius, strip.ids[row]};
  }
};

class Scan {
 public:
  Scan(const Kernels& kernels, Format format, Metric metric, const Rows& queries, const Piece& piece, const Filter& filter,
       std::size_t k, std::size_t threads, const Problem& problem, const PackedPiece* packed, std::vector<TopK>& best)
      : kernels_(kernels),
        format_(format),
        metric_(metric),
        queries_(queries),
        piece_(piece),
        filter_(filter),
        filtered_(filter.ids || filter.allowed || filter.excluded),
        k_(k),
        threads_(threads),
        problem_(problem),
        packed_(packed),
        best_(best) {}

  // Searches for the queries that `which` names; returns those whose guesses failed, for which nothing has changed.
  std::vector<std::uint32_t> run(std::vector<std::uint32_t> which, bool guesses);

 private:
  struct Task;  // the context of a hit

  // Candidates of a query from where on they are measured early, so that memory is bounded.
  std::size_t most_candidates() const { return 2 * k_ + 1024; }
  std::size_t rank(std::size_t seen) const;
  void scan_chunk(const Strip* strips, std::size_t count);
  void scan_batch(std::size_t batch, std::size_t part, const Strip* strips, std::size_t count);
  bool finish(std::size_t query);
  void tighten(std::uint32_t query, std::size_t rank, State& state, std::vector<float>& scratch) const;
  void measure(std::uint32_t query, const std::vector<Candidate>& candidates, TopK& found) const;
  State& state(std::size_t query, std::size_t part) { return states_[query * parts_ + part]; }
  static void on_hit(void* context, std::size_t query, std::size_t group, std::uint32_t mask, const void* sums);
  static void on_full(Task& task, std::size_t query, std::size_t rows);

  const Kernels& kernels_;
  Format format_;
  Metric metric_;
  const Rows& queries_;
  const Piece& piece_;
  const Filter& filter_;
  bool filtered_;
  std::size_t k_;
  std::size_t threads_;
  const Problem& problem_;
  const PackedPiece* packed_;
  std::vector<TopK>& best_;

  // The queries at hand.
  bool guesses_ = true;
  std::vector<std::uint32_t> which_;
  std::vector<std::unique_ptr<PackedQueries>> batches_;
  std::size_t parts_ = 1;          // tasks that share the rows of a chunk, each with its own state
  std::vector<State> states_;      // (which_, parts_)
  std::vector<std::size_t> seen_;  // (parts_,) rows of earlier chunks
};

struct Scan::Task {
  Scan& scan;
  std::size_t first;  // query of the batch
  std::size_t part;
  const PackedQueries& queries;
  std::vector<QueryBound> bounds;
  std::vector<PackedQueries::Scale> scales;
  std::size_t seen;  // rows of earlier strips
  const Strip* strip = nullptr;
  std::vector<float> scratch = {};
};

void Scan::on_hit(void* context, std::size_t query, std::size_t group, std::uint32_t mask, const void* sums) {
  Task& task = *static_cast<Task*>(context);
  Scan& scan = task.scan;
  const Strip& strip = *task.strip;
  const Intervals interval{scan.format_, strip, task.scales.data()};
  State& state = scan.state(task.first + query, task.part);
  for (; mask != 0; mask &= mask - 1) {
    const std::size_t row = group * kGroup + static_cast<std::size_t>(std::countr_zero(mask));
    if (row >= strip.count) break;
    if (scan.filtered_ &&
        !scan.filter_.passes(scan.which_[task.first + query], strip.ids[row], scan.piece_.start + strip.ids[row])) {
      continue;
    }
    const Candidate candidate = interval(query, row, sums);
    if (candidate.lowest <= state.limit) state.candidates.push_back(candidate);
  }
  if (state.candidates.size() >= state.room) on_full(task, query, std::min((group + 1) * kGroup, strip.count));
}

// The candidates of a query have no more room, after some rows of the strip.
[[gnu::noinline]] void Scan::on_full(Task& task, std::size_t query, std::size_t rows) {
  Scan& scan = task.scan;
  State& state = scan.state(task.first + query, task.part);
  scan.tighten(scan.which_[task.first + query], scan.rank(task.seen + rows), state, task.scratch);
  task.queries.bound(query, *task.strip, state.limit, task.bounds[query], task.scales[query]);
}

void Scan::scan_batch(std::size_t batch, std::size_t part, const Strip* strips, std::size_t count) {
  const PackedQueries& queries = *batches_[batch];
  Task task{*this,
            batch * kBatch,
            part,
            queries,
            std::vector<QueryBound>(queries.count()),
            std::vector<PackedQueries::Scale>(queries.count()),
            seen_[part]};
  const AlignedBytes scratch(queries.count() * kGroup * 4);
  for (task.strip = strips; task.strip != strips + count; ++task.strip) {
    for (std::size_t q = 0; q < queries.count(); ++q) {
      queries.bound(q, *task.strip, state(task.first + q, part).limit, task.bounds[q], task.scales[q]);
    }
    kernels_.scan({task.strip, format_, queries.steps(), queries.data(), queries.count(), task.bounds.data(), &on_hit, &task,
                   scratch.get()});
    task.seen += task.strip->count;
  }
}

void Scan::scan_chunk(const Strip* strips, std::size_t count) {
  const auto begin = [&](std::size_t part) { return part * count / parts_; };
  parallel_for(batches_.size() * parts_, threads_, [&](std::size_t task) {
    const std::size_t part = task % parts_;
    scan_batch(task / parts_, part, strips + begin(part), begin(part + 1) - begin(part));
  });
  for (std::size_t part = 0; part < parts_; ++part) {
    for (std::size_t i = begin(part); i < begin(part + 1); ++i) seen_[part] += strips[i].count;
  }
}

// The rank among `seen` rows whose cost the k-th of all rows hardly exceeds: three standard deviations, and three, above what
// is expected. From k on that is certain.
std::size_t Scan::rank(std::size_t seen) const {
  if (!guesses_) return k_;
  const double expected = static_cast<double>(k_) * static_cast<double>(seen) / static_cast<double>(piece_.count());
  return std::min(k_, static_cast<std::size_t>(expected + 3.0 * std::sqrt(expected)) + 4);
}

// Lowers the limit to the cost at a rank among the candidates, and drops those above it.
void Scan::tighten(std::uint32_t query, std::size_t rank, State& state, std::vector<float>& scratch) const {
  auto& candidates = state.candidates;
  if (candidates.size() >= rank) {
    const double cost = highest_of_best(candidates, rank, scratch);
    if (cost < state.limit) {
      state.limit = cost;
      if (rank < k_) state.guess = cost;
    }
  }
  std::erase_if(candidates, [&](const Candidate& candidate) { return candidate.lowest > state.limit; });
  if (candidates.size() > most_candidates() / 2) {
    // The bounds are too wide to tell these apart.
    measure(query, candidates, state.found);
    candidates.clear();
    const Key kth = state.found.kth();
    if (kth != kNoKey) state.limit = std::min(state.limit, problem_.highest_cost(key_distance(metric_, kth)));
  }
  state.room = std::min(2 * std::max(candidates.size(), rank) + kSpareRoom, most_candidates());
}

void Scan::measure(std::uint32_t query, const std::vector<Candidate>& candidates, TopK& found) const {
  const CanonicalQuery canonical(kernels_, metric_, queries_, query);
  std::vector<double> row(piece_.rows.dim);
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (i + kRowsAhead < candidates.size()) prefetch_row(piece_.rows, candidates[i + kRowsAhead].id);
    const std::uint32_t id = candidates[i].id;
    const double distance =
        kernels_.distance_to_row(metric_, piece_.rows, id, canonical.values.data(), canonical.sq_norm, row.data());
    found.push(make_key(metric_, distance, piece_.start + id));
  }
}

// Measures what is left of a query; false if a guess did not hold, with nothing changed.
bool Scan::finish(std::size_t query) {
  State& all = state(query, 0);
  for (std::size_t part = 1; part < parts_; ++part) {
    State& other = state(query, part);
    all.limit = std::min(all.limit, other.limit);
    all.guess = std::min(all.guess, other.guess);
    all.candidates.insert(all.candidates.end(), other.candidates.begin(), other.candidates.end());
    all.found.merge(other.found);
  }
  std::vector<float> scratch;
  tighten(which_[query], k_, all, scratch);
  measure(which_[query], all.candidates, all.found);
  TopK merged = best_[which_[query]];
  merged.merge(all.found);
  if (all.guess != kOpen) {
    const Key kth = merged.kth();
    if (kth == kNoKey || problem_.highest_cost(key_distance(metric_, kth)) > all.guess) return false;
  }
  best_[which_[query]] = std::move(merged);
  return true;
}

std::vector<std::uint32_t> Scan::run(std::vector<std::uint32_t> which, bool guesses) {
  which_ = std::move(which);
  guesses_ = guesses;
  const std::size_t batch_count = (which_.size() + kBatch - 1) / kBatch;
  parts_ = std::clamp<std::size_t>(kTasksPerThread * threads_ / batch_count, 1,
                                   Deal(format_, problem_.width(), piece_.count()).strips);
  batches_.resize(batch_count);
  parallel_for(batch_count, threads_, [&](std::size_t batch) {
    const std::size_t first = batch * kBatch;
    const std::size_t count = std::min(kBatch, which_.size() - first);
    batches_[batch] = std::make_unique<PackedQueries>(kernels_, problem_, format_, queries_, which_, first, count);
  });
  states_.assign(which_.size() * parts_, State(k_));
  seen_.assign(parts_, 0);
  for (std::size_t q = 0; q < which_.size(); ++q) {
    const Key kth = best_[which_[q]].kth();
    if (kth == kNoKey) continue;
    for (std::size_t part = 0; part < parts_; ++part) {
      state(q, part).limit = problem_.highest_cost(key_distance(metric_, kth));
    }
  }
  if (packed_) {
    scan_chunk(packed_->strips.data(), packed_->strips.size());
  } else {
    std::vector<Strip> strips;
    for_each_chunk(kernels_, problem_, format_, piece_, threads_, strips,
                   [&](const Strip* chunk, std::size_t count) { scan_chunk(chunk, count); });
  }
  std::vector<std::uint8_t> certified(which_.size());
  parallel_for(which_.size(), threads_, [&](std::size_t q) { certified[q] = finish(q); });
  std::vector<std::uint32_t> failed;
  for (std::size_t q = 0; q < which_.size(); ++q) {
    if (!certified[q]) failed.push_back(which_[q]);
  }
  return failed;
}

// How many candidates a query is left with in int8, judged by some queries and rows.
double expected_candidates(const Kernels& kernels, const Problem& problem, const Rows& queries,
                           const std::vector<std::uint32_t>& which, const Piece& piece, std::size_t k) {
  constexpr std::size_t kQueries = 12;
  constexpr std::size_t kRows = 512;
  constexpr Format kFormat = Format::kInt8;
  Strip strip;
  const std::size_t rows = std::min(kRows, piece.count());
  for (std::size_t i = 0; i < rows; ++i) strip.ids.push_back(piece.id(i * piece.count() / rows));
  pack_strip(kernels, problem, kFormat, piece.rows, strip);
  std::vector<std::uint32_t> some;
  const std::size_t count = std::min(kQueries, which.size());
  for (std::size_t i = 0; i < count; ++i) some.push_back(which[i * which.size() / count]);
  const PackedQueries packed(kernels, problem, kFormat, queries, some, 0, count);
  std::vector<QueryBound> bounds(count);
  std::vector<PackedQueries::Scale> scales(count);
  for (std::size_t q = 0; q < count; ++q) packed.bound(q, strip, kOpen, bounds[q], scales[q]);
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

// int8 halves the products of int16 but leaves more candidates.
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

}  // namespace

void certified_scan(const Kernels& kernels, std::optional<Format> format, Metric metric, const Rows& queries,
                    const std::vector<std::uint32_t>& which, const Piece& piece, const Filter& filter, std::size_t k,
                    std::size_t threads, const PackedPiece* packed, std::vector<TopK>& best) {
  const std::optional<Problem> own = packed ? std::nullopt : std::optional<Problem>(std::in_place, kernels, metric, piece.rows);
  const Problem& problem = packed ? packed->problem : *own;
  if (!format) format = choose_format(kernels, problem, queries, which, piece, k, packed != nullptr);
  Scan scan(kernels, *format, metric, queries, piece, filter, k, threads, problem, *format == Format::kInt8 ? packed : nullptr,
            best);
  const std::size_t per_query = 4 * steps(*format, queries.dim) + 3 * k * sizeof(Candidate) + 1024;
  const std::size_t at_once = std::max<std::size_t>(1, kStateBytes / per_query / kBatch) * kBatch;
  for (std::size_t first = 0; first < which.size(); first += at_once) {
    const auto begin = which.begin() + static_cast<std::ptrdiff_t>(first);
    const auto end = which.begin() + static_cast<std::ptrdiff_t>(std::min(first + at_once, which.size()));
    const auto failed = scan.run({begin, end}, true);
    if (!failed.empty()) scan.run(failed, false);
  }
}

}  // namespace iiae
