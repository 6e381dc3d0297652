#include "cpu/brute_force.h"

#include <algorithm>
#include <mutex>

#include "cpu/parallel.h"
#include "cpu/top_k.h"

namespace iiae {

namespace {

constexpr std::size_t kQueryGroup = 8;      // queries that share one conversion of a row to float64
constexpr std::size_t kTasksPerThread = 4;  // so that threads finish together

}  // namespace

void brute_force(const Kernels& kernels, Metric metric, const Rows& queries, const std::vector<std::uint32_t>& which,
                 const Piece& piece, const Filter& filter, std::size_t k, std::size_t threads, Results& results) {
  const std::size_t groups = (which.size() + kQueryGroup - 1) / kQueryGroup;
  if (groups == 0 || piece.count() == 0) return;
  // Few queries: split the rows too, so that one query uses all threads.
  const std::size_t parts = std::clamp<std::size_t>(kTasksPerThread * threads / groups, 1, (piece.count() + 255) / 256);
  std::mutex mutex;
  parallel_for(groups * parts, threads, [&](std::size_t task) {
    const std::size_t first = task / parts * kQueryGroup;
    const std::size_t last = std::min(first + kQueryGroup, which.size());
    const std::size_t part = task % parts;
    std::vector<CanonicalQuery> group;
    for (std::size_t i = first; i < last; ++i) group.emplace_back(kernels, metric, queries, which[i]);
    std::vector<TopK> found(group.size(), TopK(k));
    std::vector<double> row(piece.rows.dim);
    for (std::size_t i = part * piece.count() / parts; i < (part + 1) * piece.count() / parts; ++i) {
      const std::uint32_t id = piece.id(i);
      const std::size_t index = piece.start + id;
      const double sq_norm = kernels.load_row(piece.rows, id, metric, row.data());
      for (std::size_t j = 0; j < group.size(); ++j) {
        if (!filter.passes(which[first + j], id, index)) continue;
        const double distance =
            kernels.distance(metric, row.size(), group[j].values.data(), group[j].sq_norm, row.data(), sq_norm);
        found[j].push(make_key(metric, distance, index));
      }
    }
    std::vector<std::vector<Key>> keys;
    for (TopK& one : found) keys.push_back(one.sorted());
    const std::lock_guard lock(mutex);
    for (std::size_t j = 0; j < group.size(); ++j) results.merge(which[first + j], keys[j]);
  });
}

}  // namespace iiae
