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
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>

#include "cpu/candidates.h"
#include "cpu/format_choice.h"
#include "cpu/packing.h"
#include "cpu/parallel.h"
#include "cpu/problem.h"
#include "cpu/top_k.h"

namespace iiae {

namespace {

constexpr double kOpen = std::numeric_limits<double>::infinity();
constexpr std::size_t kBatch = 48;             // queries of one task; a multiple of every tile
constexpr std::size_t kStateBytes = 96 << 20;  // packed queries and candidates at a time
constexpr std::size_t kTasksPerThread = 3;     // so that threads finish together
constexpr std::size_t kSpareRoom = 32;         // for candidates, where few are expected
constexpr std::size_t kFirstGroups = 4;        // scanned before limits are looked at for the first time

// What one task knows about one query.
struct State {
  double limit = kOpen;
  double guess = kOpen;  // the lowest limit that was not proven
  std::size_t room = kSpareRoom;
  Candidates candidates;
  TopK found;  // candidates that had to be measured early

  explicit State(std::size_t k) : found(k) {}
};

class Scan {
 public:
  Scan(const Kernels& kernels, Format format, Metric metric, const Rows& queries, const Piece& piece, const Filter& filter,
       std::size_t k, std::size_t threads, const Problem& problem, const PackedPiece* packed, Results& results)
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
        results_(results) {}

  // Searches for the queries that `which` names; returns those whose guesses failed, for which nothing has changed.
  std::vector<std::uint32_t> run(std::vector<std::uint32_t> which, bool guesses);

 private:
  // Memory that the queries of a task use one after the other.
  struct Scratch {
    std::vector<float> costs;
    std::vector<Key> keys;
    std::vector<Key> sorting;
  };

  // Candidates of a query from where on they are measured early, so that memory is bounded.
  std::size_t most_candidates() const { return 4 * k_ + 1024; }
  std::size_t rank(std::size_t seen) const;
  void scan_chunk(const Strip* strips, std::size_t count, bool last);
  void scan_batch(std::size_t batch, std::size_t part, const Strip* strips, std::size_t count);
  void finish_batch(std::size_t batch);
  bool finish(std::size_t query, Scratch& scratch);
  void tighten(std::uint32_t query, std::size_t rank, State& state, Scratch& scratch) const;
  void measure(std::uint32_t query, const Candidates& candidates, std::vector<Key>& keys) const;
  State& state(std::size_t query, std::size_t part) { return states_[query * parts_ + part]; }

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
  Results& results_;

  // The queries at hand.
  bool guesses_ = true;
  std::vector<std::uint32_t> which_;
  std::vector<std::unique_ptr<PackedQueries>> batches_;
  std::size_t parts_ = 1;          // tasks that share the rows of a chunk, each with its own state
  std::vector<State> states_;      // (which_, parts_)
  std::vector<std::size_t> seen_;  // (parts_,) rows of earlier chunks
  std::vector<Candidates> spare_;  // empty lists that have memory, of queries that are done
  std::mutex spare_mutex_;
  std::vector<std::uint8_t> certified_;  // (which_,)
};

void Scan::scan_batch(std::size_t batch, std::size_t part, const Strip* strips, std::size_t count) {
  const PackedQueries& queries = *batches_[batch];
  const std::size_t first_query = batch * kBatch;
  std::vector<QueryBound> bounds(queries.count());
  std::vector<PackedQueries::Scale> scales(queries.count());
  HitLists lists(queries.count(), strips->groups);
  const AlignedBytes sums(queries.count() * kGroup * 4);
  Scratch scratch;
  {
    const std::lock_guard lock(spare_mutex_);
    for (std::size_t q = 0; q < queries.count() && !spare_.empty(); ++q) {
      Candidates& candidates = state(first_query + q, part).candidates;
      if (candidates.room() > 0) continue;
      candidates = std::move(spare_.back());
      spare_.pop_back();
    }
  }
  std::size_t seen = seen_[part];
  for (const Strip* strip = strips; strip != strips + count; ++strip) {
    // While few rows are known, limits fall fast: only as many again are scanned with the same ones.
    for (std::size_t group = 0, end; group < strip->groups; group = end) {
      end = std::min(strip->groups, group + std::max(kFirstGroups, seen / kGroup));
      for (std::size_t q = 0; q < queries.count(); ++q) {
        queries.bound(q, *strip, state(first_query + q, part).limit, bounds[q], scales[q]);
      }
      kernels_.scan({strip, group, end, format_, queries.steps(), queries.data(), queries.count(), bounds.data(), lists.get(),
                     sums.get()});
      seen += std::min(end * kGroup, strip->count) - group * kGroup;
      for (std::size_t q = 0; q < queries.count(); ++q) {
        const Hits hits = lists[q].taken(strip->count);
        if (hits.count == 0) continue;
        State& known = state(first_query + q, part);
        const std::uint32_t query = which_[first_query + q];
        const auto permitted = [&](std::uint32_t id) { return !filtered_ || filter_.passes(query, id, piece_.start + id); };
        add_hits(format_, *strip, scales[q], hits, permitted, known.candidates);
        if (known.candidates.size() >= known.room) tighten(query, rank(seen), known, scratch);
      }
    }
  }
}

void Scan::scan_chunk(const Strip* strips, std::size_t count, bool last) {
  const auto begin = [&](std::size_t part) { return part * count / parts_; };
  parallel_for(batches_.size() * parts_, threads_, [&](std::size_t task) {
    const std::size_t part = task % parts_;
    scan_batch(task / parts_, part, strips + begin(part), begin(part + 1) - begin(part));
    // At once, while the candidates are in the cache.
    if (last && parts_ == 1) finish_batch(task);
  });
  if (last && parts_ > 1) parallel_for(batches_.size(), threads_, [&](std::size_t batch) { finish_batch(batch); });
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
void Scan::tighten(std::uint32_t query, std::size_t rank, State& state, Scratch& scratch) const {
  auto& candidates = state.candidates;
  if (candidates.size() >= rank) {
    const float share = guesses_ ? likely_share(problem_.width()) : 1.0f;
    const double cost = candidates.cost_of_best(rank, share, scratch.costs);
    if (cost < state.limit) {
      state.limit = cost;
      if (guesses_) state.guess = cost;
    }
  }
  candidates.drop_above(state.limit);
  if (candidates.size() > most_candidates() / 2) {
    // The bounds are too wide to tell these apart.
    scratch.keys.clear();
    measure(query, candidates, scratch.keys);
    for (const Key key : scratch.keys) state.found.push(key);
    candidates.clear();
    const Key kth = state.found.kth();
    if (kth != kNoKey) state.limit = std::min(state.limit, problem_.highest_cost(key_distance(metric_, kth)));
  }
  state.room = std::min(2 * std::max(candidates.size(), rank) + kSpareRoom, most_candidates());
}

// Appends the keys of candidates.
void Scan::measure(std::uint32_t query, const Candidates& candidates, std::vector<Key>& keys) const {
  const CanonicalQuery canonical(kernels_, metric_, queries_, query);
  std::vector<double> row(piece_.rows.dim);
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (i + kRowsAhead < candidates.size()) prefetch_row(piece_.rows, candidates.id(i + kRowsAhead));
    const std::uint32_t id = candidates.id(i);
    const double distance =
        kernels_.distance_to_row(metric_, piece_.rows, id, canonical.values.data(), canonical.sq_norm, row.data());
    keys.push_back(make_key(metric_, distance, piece_.start + id));
  }
}

// Measures what is left of a query; false if a guess did not hold, with nothing changed.
bool Scan::finish(std::size_t query, Scratch& scratch) {
  State& all = state(query, 0);
  for (std::size_t part = 1; part < parts_; ++part) {
    State& other = state(query, part);
    all.limit = std::min(all.limit, other.limit);
    all.guess = std::min(all.guess, other.guess);
    all.candidates.add(other.candidates);
    all.found.merge(other.found);
  }
  tighten(which_[query], k_, all, scratch);
  auto& keys = scratch.keys;
  keys = all.found.keys();
  results_.append_to(which_[query], keys);
  measure(which_[query], all.candidates, keys);
  sort_smallest(keys, k_, scratch.sorting);
  if (all.guess != kOpen) {
    if (keys.size() < k_ || problem_.highest_cost(key_distance(metric_, keys.back())) > all.guess) return false;
  }
  results_.set(which_[query], keys);
  return true;
}

void Scan::finish_batch(std::size_t batch) {
  Scratch scratch;
  for (std::size_t query = batch * kBatch; query < std::min((batch + 1) * kBatch, which_.size()); ++query) {
    certified_[query] = finish(query, scratch);
    const std::lock_guard lock(spare_mutex_);
    for (std::size_t part = 0; part < parts_; ++part) {
      State& done = state(query, part);
      done.candidates.clear();
      spare_.push_back(std::move(done.candidates));
      done = State(k_);
    }
  }
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
  certified_.assign(which_.size(), 0);
  for (std::size_t q = 0; q < which_.size(); ++q) {
    const Key kth = results_.kth(which_[q]);
    if (kth == kNoKey) continue;
    for (std::size_t part = 0; part < parts_; ++part) {
      state(q, part).limit = problem_.highest_cost(key_distance(metric_, kth));
    }
  }
  if (packed_) {
    scan_chunk(packed_->strips.data(), packed_->strips.size(), true);
  } else {
    std::vector<Strip> strips;
    for_each_chunk(kernels_, problem_, format_, piece_, threads_, strips,
                   [&](const Strip* chunk, std::size_t count, bool last) { scan_chunk(chunk, count, last); });
  }
  std::vector<std::uint32_t> failed;
  for (std::size_t q = 0; q < which_.size(); ++q) {
    if (!certified_[q]) failed.push_back(which_[q]);
  }
  return failed;
}

}  // namespace

void certified_scan(const Kernels& kernels, std::optional<Format> format, Metric metric, const Rows& queries,
                    const std::vector<std::uint32_t>& which, const Piece& piece, const Filter& filter, std::size_t k,
                    std::size_t threads, const PackedPiece* packed, Results& results) {
  const std::optional<Problem> own = packed ? std::nullopt : std::optional<Problem>(std::in_place, kernels, metric, piece.rows);
  const Problem& problem = packed ? packed->problem : *own;
  if (!format) format = choose_format(kernels, problem, queries, which, piece, k, packed != nullptr);
  Scan scan(kernels, *format, metric, queries, piece, filter, k, threads, problem, *format == Format::kInt8 ? packed : nullptr,
            results);
  const std::size_t per_query = 4 * steps(*format, queries.dim) + 40 * k + 4096;
  const std::size_t at_once = std::max<std::size_t>(1, kStateBytes / per_query / kBatch) * kBatch;
  for (std::size_t first = 0; first < which.size(); first += at_once) {
    const auto begin = which.begin() + static_cast<std::ptrdiff_t>(first);
    const auto end = which.begin() + static_cast<std::ptrdiff_t>(std::min(first + at_once, which.size()));
    const auto failed = scan.run({begin, end}, true);
    if (!failed.empty()) scan.run(failed, false);
  }
}

}  // namespace iiae
