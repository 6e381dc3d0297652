// Counting works on fp32 products with an error bound (see packed.h): nearly every row lies clearly between two relevant rows
// then; the others are measured canonically. Rows clearly behind the last relevant one are not even looked at.

#include "cpu/ranking.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/packing.h"
#include "cpu/parallel.h"
#include "cpu/piece.h"
#include "cpu/problem.h"
#include "cpu/search.h"

namespace iiae {

namespace {

constexpr std::size_t kQueryGroup = 8;  // queries that share one conversion of a row to float64
constexpr std::size_t kBatch = 48;      // queries of one task of a scan; a multiple of every tile
constexpr std::size_t kBinsPerRow = 16;
constexpr std::size_t kMaxBins = 1 << 16;

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
      std::sort(relevant_[q].begin(), relevant_[q].end());
      counts_[q].assign(relevant_[q].size() + 1, 0);
    });
  }
  if (choose_method(kernels(), queries_.count, rows.count, rows.dim) != Method::kBruteForce) {
    count_by_scan(rows, start, labels);
    return;
  }
  for_each_pair(rows, start, labels, false, [&](std::size_t q, Key key) { ++counts_[q][position(q, key)]; });
}

// The costs of a query's relevant rows, and a table that finds a cost's place among them.
struct Ranking::Ruler {
  std::vector<double> lowest;   // a row of a lower cost comes before relevant row i,
  std::vector<double> highest;  // one of a higher cost after it
  std::vector<std::uint32_t> first;
  double base = 0.0;
  double inverse_width = 0.0;

  void set(const Problem& problem, const std::vector<Key>& keys) {
    lowest.clear();
    highest.clear();
    for (const Key key : keys) {
      lowest.push_back(problem.lowest_cost(key_distance(problem.metric(), key)));
      highest.push_back(problem.highest_cost(key_distance(problem.metric(), key)));
    }
    const std::size_t bins = std::min(kBinsPerRow * keys.size() + 2, kMaxBins);
    first.assign(bins, 0);
    if (keys.empty()) return;
    base = highest.front();
    inverse_width = static_cast<double>(bins - 2) / (highest.back() - base);
    if (!std::isfinite(inverse_width)) inverse_width = 0.0;
    for (std::size_t bin = 2; bin < bins && inverse_width > 0.0; ++bin) {
      // Costs of this bin lie above the start of the one before.
      const double above = base + static_cast<double>(bin - 1) / inverse_width;
      first[bin] = static_cast<std::uint32_t>(std::lower_bound(highest.begin(), highest.end(), above) - highest.begin());
    }
  }

  // How many relevant rows come before one of at least this cost, as far as the bound tells.
  std::size_t before(double cost) const {
    const double bin = (cost - base) * inverse_width;
    const std::size_t last = first.size() - 1;
    std::size_t i = bin >= static_cast<double>(last) ? first[last] : bin > 0.0 ? first[static_cast<std::size_t>(bin)] : 0;
    while (i > 0 && highest[i - 1] >= cost) --i;  // where all costs agree in nearly all digits, bins are blurred
    const std::size_t nearby = std::min(i + 8, highest.size());
    while (i < nearby && highest[i] < cost) ++i;
    if (i < nearby || i == highest.size()) return i;
    return static_cast<std::size_t>(std::lower_bound(highest.begin() + static_cast<std::ptrdiff_t>(i), highest.end(), cost) -
                                    highest.begin());
  }
};

// The context of a hit.
struct Ranking::Counting {
  Ranking& ranking;
  const Kernels& table;
  const Rows& rows;
  std::size_t start;
  const std::int64_t* labels;
  const std::uint32_t* which;  // the queries of the batch
  std::vector<Ruler> rulers;
  std::vector<PackedQueries::Scale> scales;
  const Strip* strip = nullptr;
  std::vector<double> row;

  static void on_hit(void* context, std::size_t query, std::size_t group, std::uint32_t mask, const void* sums) {
    static_cast<Counting*>(context)->hit(query, group, mask, static_cast<const float*>(sums));
  }

  void hit(std::size_t query, std::size_t group, std::uint32_t mask, const float* sums) {
    const PackedQueries::Scale& scale = scales[query];
    const Ruler& ruler = rulers[query];
    const std::size_t q = which[query];
    auto& counts = ranking.counts_[q];
    const std::size_t begin = group * kGroup;
    const std::size_t size = std::min(kGroup, strip->count - begin);
    double lowest[kGroup];
    double highest[kGroup];
    for (std::size_t i = 0; i < size; ++i) {
      const double unit = scale.unit * strip->scale[begin + i];
      const double middle = scale.offset + strip->offset[begin + i] - unit * (sums[i] - scale.init);
      const double radius = unit * scale.error + scale.slack;
      lowest[i] = middle - radius;
      highest[i] = middle + radius;
    }
    for (std::size_t i = 0; i < size; ++i) {
      const std::size_t id = strip->ids[begin + i];
      if (!(mask >> i & 1u) || labels[id] == ranking.labels_[q] || ranking.excludes(q, start + id)) continue;
      std::size_t place = ruler.before(lowest[i]);
      // NaN, of a row that has no bound, fails this too.
      const bool clear = place == ruler.lowest.size() ? lowest[i] > ruler.highest.back() : highest[i] < ruler.lowest[place];
      if (!clear) place = ranking.position(q, measure(q, id));
      ++counts[place];
    }
  }

  Key measure(std::size_t q, std::size_t id) {
    const CanonicalQuery query(table, ranking.metric_, ranking.queries_, q);
    const double sq_norm = table.load_row(rows, id, ranking.metric_, row.data());
    const double distance =
        table.distance(ranking.metric_, row.size(), query.values.data(), query.sq_norm, row.data(), sq_norm);
    return make_key(ranking.metric_, distance, start + id);
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
  for_each_chunk(table, problem, kFormat, piece, threads_, strips, [&](const Strip* chunk, std::size_t count) {
    parallel_for((which.size() + kBatch - 1) / kBatch, threads_, [&](std::size_t batch) {
      const std::size_t first = batch * kBatch;
      const std::size_t size = std::min(kBatch, which.size() - first);
      const PackedQueries queries(table, problem, kFormat, queries_, which, first, size);
      std::vector<QueryBound> bounds(size);
      const AlignedBytes scratch(size * kGroup * 4);
      Counting counting{*this,
                        table,
                        rows,
                        start,
                        labels,
                        which.data() + first,
                        std::vector<Ruler>(size),
                        std::vector<PackedQueries::Scale>(size),
                        nullptr,
                        std::vector<double>(rows.dim)};
      for (std::size_t q = 0; q < size; ++q) counting.rulers[q].set(problem, relevant_[which[first + q]]);
      for (const Strip* strip = chunk; strip != chunk + count; ++strip) {
        counting.strip = strip;
        for (std::size_t q = 0; q < size; ++q) {
          queries.bound(q, *strip, counting.rulers[q].highest.back(), bounds[q], counting.scales[q]);
        }
        table.scan({strip, kFormat, queries.steps(), queries.data(), size, bounds.data(), &Counting::on_hit, &counting,
                    scratch.get()});
      }
    });
  });
}

const std::vector<std::vector<std::int64_t>>& Ranking::ranks() {
  if (collecting_) throw std::logic_error("ranks() before count()");
  for (auto& counts : counts_) {
    counts.pop_back();  // the rows after the last relevant one
    std::int64_t rank = 0;
    for (auto& value : counts) value = rank += value + 1;
  }
  return counts_;
}

}  // namespace iiae
