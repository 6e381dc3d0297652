// Counting works on fp32 products with an error bound (see packed.h). A histogram of their costs for every query has bins that
// no relevant row can be in, as far as the bounds tell: rows in them are only counted, and where they rank among the relevant
// ones is known in the end. Rows in the other bins are compared with the relevant rows nearby, canonically where the bounds
// overlap. Rows clearly behind the last relevant one are not even looked at.

#include "cpu/ranking.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "cpu/packing.h"
#include "cpu/parallel.h"
#include "cpu/piece.h"
#include "cpu/problem.h"
#include "cpu/search.h"
#include "cpu/top_k.h"

namespace iiae {

namespace {

constexpr std::size_t kQueryGroup = 8;  // queries that share one conversion of a row to float64
constexpr std::size_t kBatch = 48;      // queries of one task of a scan; a multiple of every tile
constexpr std::size_t kBinsPerRow = 8;  // relevant rows
constexpr std::size_t kMaxBins = 1 << 16;
constexpr std::uint32_t kNear = 1u << 31;  // of a bin: a relevant row may be in it

}  // namespace

Ranking::Ranking(const Rows& queries, Metric metric, const std::int64_t* labels, const std::int64_t* exclude,
                 std::size_t threads)
    : queries_(queries),
      metric_(metric),
      labels_(labels),
      exclude_(exclude),
      threads_(threads),
      relevant_(queries.count),
      counts_(queries.count) {}

// Calls each(query, key) for the pairs whose labels are equal, or for those whose labels differ.
template <class Each>
void Ranking::for_each_pair(const Rows& rows, std::size_t start, const std::int64_t* labels, bool relevant, Each each) {
  const Kernels& table = kernels();
  const std::size_t groups = (queries_.count + kQueryGroup - 1) / kQueryGroup;
  parallel_for(groups, threads_, [&](std::size_t task) {
    const std::size_t first = task * kQueryGroup;
    const std::size_t last = std::min(first + kQueryGroup, queries_.count);
    std::vector<CanonicalQuery> group;
    for (std::size_t q = first; q < last; ++q) group.emplace_back(table, metric_, queries_, q);
    std::vector<double> row(rows.dim);
    for (std::size_t i = 0; i < rows.count; ++i) {
      double sq_norm = -1.0;
      for (std::size_t q = first; q < last; ++q) {
        if ((labels_[q] == labels[i]) != relevant || excludes(q, start + i)) continue;
        if (sq_norm < 0.0) sq_norm = table.load_row(rows, i, metric_, row.data());
        const CanonicalQuery& query = group[q - first];
        const double distance = table.distance(metric_, row.size(), query.values.data(), query.sq_norm, row.data(), sq_norm);
        each(q, make_key(metric_, distance, start + i));
      }
    }
  });
}

void Ranking::collect(const Rows& rows, std::size_t start, const std::int64_t* labels) {
  if (!collecting_) throw std::logic_error("collect() after count()");
  for_each_pair(rows, start, labels, true, [&](std::size_t q, Key key) { relevant_[q].push_back(key); });
}

std::size_t Ranking::position(std::size_t query, Key key) const {
  const auto& keys = relevant_[query];
  return static_cast<std::size_t>(std::lower_bound(keys.begin(), keys.end(), key) - keys.begin());
}

void Ranking::count(const Rows& rows, std::size_t start, const std::int64_t* labels) {
  if (collecting_) {
    collecting_ = false;
    parallel_for(queries_.count, threads_, [&](std::size_t q) {
      std::vector<Key> scratch;
      sort_smallest(relevant_[q], relevant_[q].size(), scratch);
      counts_[q].assign(relevant_[q].size() + 1, 0);
    });
  }
  if (choose_method(kernels(), queries_.count, rows.count, rows.dim) != Method::kBruteForce) {
    count_by_scan(rows, start, labels);
    return;
  }
  for_each_pair(rows, start, labels, false, [&](std::size_t q, Key key) { ++counts_[q][position(q, key)]; });
}

// The costs of a query's relevant rows, and a histogram of the costs of all rows.
struct Ranking::Ruler {
  std::vector<double> lowest;   // a row of a lower cost comes before relevant row i,
  std::vector<double> highest;  // one of a higher cost after it
  double base = 0.0;
  double inverse_width = 0.0;
  double radius = 0.0;  // estimated costs are off by at most this
  // Rows in a bin; of a bin that a relevant row may be in, kNear | a number of relevant rows that are clearly below it.
  std::vector<std::uint32_t> bins;

  void set(const Problem& problem, const std::vector<Key>& keys) {
    for (const Key key : keys) {
      lowest.push_back(problem.lowest_cost(key_distance(problem.metric(), key)));
      highest.push_back(problem.highest_cost(key_distance(problem.metric(), key)));
    }
  }

  // Sets the bins up, empty.
  void start(double error) {
    radius = error;
    bins.assign(std::min(kBinsPerRow * lowest.size() + 3, kMaxBins), 0);
    const std::size_t last = bins.size() - 1;  // for rows after the last relevant one
    base = lowest.front() - radius;
    inverse_width = static_cast<double>(last - 1) / (highest.back() + radius - base);
    if (!std::isfinite(inverse_width)) inverse_width = 0.0;
    bins[0] = kNear;  // rows without a bound come here too
    std::size_t next = 1;
    for (std::size_t i = 0; i < lowest.size(); ++i) {
      next = std::max(next, bin(lowest[i] - radius));
      for (const std::size_t end = bin(highest[i] + radius) + 1; next < end; ++next) mark(next, i);
    }
  }

  // Rows of costs between these are to be looked at one by one.
  void look_at(double from, double to) {
    const std::size_t first = bin(from - radius);
    const auto clear = [&](double cost) { return bin(cost + radius) < first; };
    const auto end = std::partition_point(highest.begin(), highest.end(), clear);
    for (std::size_t i = first; i <= bin(to + radius); ++i) {
      if (!(bins[i] & kNear)) mark(i, static_cast<std::size_t>(end - highest.begin()));
    }
  }

  void mark(std::size_t bin, std::size_t relevant_below) { bins[bin] = kNear | static_cast<std::uint32_t>(relevant_below); }

  std::size_t bin(double cost) const { return static_cast<std::size_t>(place(cost)); }

  // The bin of a cost, written so that compilers compute many at once; NaN goes to 0.
  std::int32_t place(double cost) const {
    const double scaled = (cost - base) * inverse_width;
    const double most = static_cast<double>(bins.size() - 1);
    const double positive = scaled > 0.0 ? scaled : 0.0;
    return static_cast<std::int32_t>(positive < most ? positive : most);
  }

  // Adds what the bins counted to counts[i], the rows between relevant rows i - 1 and i.
  void add_to(std::vector<std::int64_t>& counts) const {
    std::size_t relevant = 0;
    for (std::size_t i = 0; i < bins.size(); ++i) {
      if (bins[i] == 0 || bins[i] & kNear) continue;
      while (relevant < highest.size() && bin(highest[relevant] + radius) < i) ++relevant;
      counts[relevant] += bins[i];
    }
  }
};

// What counting is done with.
struct Ranking::Counting {
  Ranking& ranking;
  const Kernels& table;
  const Problem& problem;
  const Rows& rows;
  std::size_t start;
  const std::int64_t* labels;
  const std::uint32_t* which;  // the queries of the batch
  std::vector<Ruler> rulers;
  std::vector<CanonicalQuery> queries;
  const PackedQueries::Scale* scales = nullptr;  // for the strip at hand
  const Strip* strip = nullptr;
  std::vector<double> row = std::vector<double>(rows.dim);  // scratch

  // Counts the rows that the kernel reports.
  void take(std::size_t query, const Hits& hits) {
    const PackedQueries::Scale& scale = scales[query];
    Ruler& ruler = rulers[query];
    double middle[kGroup];
    std::int32_t place[kGroup];
    for (std::size_t begin = 0; begin < hits.count; begin += kGroup) {
      const std::size_t size = std::min(kGroup, hits.count - begin);
      for (std::size_t i = 0; i < size; ++i) {
        const std::size_t row = hits.rows[begin + i];
        const double sum = std::bit_cast<float>(hits.sums[begin + i]);
        middle[i] = scale.offset + strip->rows[row].offset - scale.unit * strip->rows[row].scale * (sum - scale.init);
        place[i] = ruler.place(middle[i]);
      }
      for (std::size_t i = 0; i < size; ++i) {
        std::uint32_t& bin = ruler.bins[static_cast<std::size_t>(place[i])];
        if (bin & kNear) {
          compare(query, hits.rows[begin + i], middle[i], bin & ~kNear);
        } else {
          ++bin;
        }
      }
    }
  }

  // Counts a row that may lie near a relevant one; the first `below` relevant rows come before it.
  void compare(std::size_t query, std::size_t row_of_strip, double middle, std::size_t below) {
    const std::size_t q = which[query];
    const std::size_t id = strip->rows[row_of_strip].id;
    if (labels[id] == ranking.labels_[q] || ranking.excludes(q, start + id)) return;
    const PackedQueries::Scale& scale = scales[query];
    const Ruler& ruler = rulers[query];
    const double radius = scale.unit * strip->rows[row_of_strip].scale * scale.error + scale.slack;
    while (below < ruler.highest.size() && ruler.highest[below] < middle - radius) ++below;
    // NaN, of a row that has no bound, fails this.
    const bool clear = below == ruler.lowest.size() || middle + radius < ruler.lowest[below];
    ++ranking.counts_[q][clear ? below : ranking.position(q, measure(query, id))];
  }

  Key measure(std::size_t query, std::size_t id) {
    const CanonicalQuery& canonical = queries[query];
    const double distance =
        table.distance_to_row(ranking.metric_, rows, id, canonical.values.data(), canonical.sq_norm, row.data());
    return make_key(ranking.metric_, distance, start + id);
  }

  // A row that the query excludes must not be counted.
  void leave_out_excluded(std::size_t query) {
    const std::int64_t* exclude = ranking.exclude_;
    const std::size_t q = which[query];
    if (!exclude || exclude[q] < static_cast<std::int64_t>(start)) return;
    const std::size_t id = static_cast<std::size_t>(exclude[q]) - start;
    if (id >= rows.count) return;
    const float distance = key_distance(ranking.metric_, measure(query, id));
    rulers[query].look_at(problem.lowest_cost(distance), problem.highest_cost(distance));
  }
};

void Ranking::count_by_scan(const Rows& rows, std::size_t start, const std::int64_t* labels) {
  constexpr Format kFormat = Format::kFloat32;
  const Kernels& table = kernels();
  const Piece piece{rows, start, {}};
  const Problem problem(table, metric_, rows);
  std::vector<std::uint32_t> which;
  for (std::size_t q = 0; q < queries_.count; ++q) {
    if (!relevant_[q].empty()) which.push_back(static_cast<std::uint32_t>(q));
  }
  std::vector<Strip> strips;
  for_each_chunk(table, problem, kFormat, piece, threads_, strips, [&](const Strip* chunk, std::size_t count, bool) {
    parallel_for((which.size() + kBatch - 1) / kBatch, threads_, [&](std::size_t batch) {
      const std::size_t first = batch * kBatch;
      const std::size_t size = std::min(kBatch, which.size() - first);
      const PackedQueries queries(table, problem, kFormat, queries_, which, first, size);
      Counting counting{*this, table, problem, rows, start, labels, which.data() + first, std::vector<Ruler>(size), {}};
      std::vector<QueryBound> bounds(count * size);
      std::vector<PackedQueries::Scale> scales(count * size);
      for (std::size_t q = 0; q < size; ++q) {
        counting.queries.emplace_back(table, metric_, queries_, which[first + q]);
        Ruler& ruler = counting.rulers[q];
        ruler.set(problem, relevant_[which[first + q]]);
        double radius = 0.0;
        for (std::size_t i = 0; i < count; ++i) {
          PackedQueries::Scale& scale = scales[i * size + q];
          queries.bound(q, chunk[i], ruler.highest.back(), bounds[i * size + q], scale);
          // The slack a second time: for the rounding of the bins.
          radius = std::max(radius, scale.unit * chunk[i].scale_unit * scale.error + 2.0 * scale.slack);
        }
        ruler.start(radius);
        counting.leave_out_excluded(q);
      }
      HitLists lists(size, chunk->groups);
      const AlignedBytes scratch(size * kGroup * 4);
      for (std::size_t i = 0; i < count; ++i) {
        counting.strip = chunk + i;
        counting.scales = scales.data() + i * size;
        table.scan({chunk + i, 0, chunk[i].groups, kFormat, queries.steps(), queries.data(), size, bounds.data() + i * size,
                    lists.get(), scratch.get()});
        for (std::size_t q = 0; q < size; ++q) counting.take(q, lists[q].taken(chunk[i].count));
      }
      for (std::size_t q = 0; q < size; ++q) counting.rulers[q].add_to(counts_[which[first + q]]);
    });
  });
}

std::vector<std::vector<std::int64_t>> Ranking::ranks() {
  if (collecting_) throw std::logic_error("ranks() before count()");
  if (counts_.size() != queries_.count) throw std::logic_error("ranks() a second time");
  auto ranks = std::exchange(counts_, {});
  for (auto& counts : ranks) {
    counts.pop_back();  // the rows after the last relevant one
    std::int64_t rank = 0;
    for (auto& value : counts) value = rank += value + 1;
  }
  return ranks;
}

}  // namespace iiae
