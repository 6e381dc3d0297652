// A scan finds a row's place among the relevant ones by bisection of their costs. Rows for which it cannot, few of them, get a
// bit in a map of all pairs, and are measured after it.

#include "cuda/count.cuh"

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/products.cuh"

namespace iiae::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr int kQueriesAtOnce = 4;  // that share one conversion of a row to float64
constexpr std::size_t kRowsPerBlock = 512;
constexpr std::size_t kWordsPerBlock = 4096;
constexpr unsigned kWordBits = 32;

// Few products a lane: what is done with each is long, and written out for all of them.
using Shape = TileShape<1, 4, 8>;

__global__ void count_all_kernel(Piece piece, CanonicalQueries queries, std::size_t count, Labels labels,
                                 RelevantRows relevant) {
  const std::size_t begin = blockIdx.x * kRowsPerBlock;
  const std::size_t end = begin + kRowsPerBlock < piece.rows.count ? begin + kRowsPerBlock : piece.rows.count;
  for (std::size_t first = blockIdx.y * kQueriesAtOnce; first < count; first += gridDim.y * kQueriesAtOnce) {
    unsigned which[kQueriesAtOnce];
#pragma unroll
    for (int c = 0; c < kQueriesAtOnce; ++c) {
      which[c] = static_cast<unsigned>(first + c < count ? first + c : count - 1);
    }
    const int used = count - first < kQueriesAtOnce ? static_cast<int>(count - first) : kQueriesAtOnce;
    const auto add = [&](int c, std::size_t i, double distance) {
      if (!labels.counts(which[c], i, piece.start + i)) return;
      relevant.add(which[c], make_key(piece.metric, distance, piece.start + i));
    };
    for_each_distance<kQueriesAtOnce>(piece.rows, piece.metric, queries, which, used, begin, end, add);
  }
}

struct CountTask {
  Problem problem;
  PackedRows rows;
  PackedQueries queries;
  std::size_t start;
  Labels labels;
  RelevantRows relevant;
  std::uint32_t* marks;
  std::size_t words;
};

template <bool kResident>
__global__ void __launch_bounds__(kProductThreads, Shape::kBlocksAtOnce) count_kernel(CountTask task) {
  __shared__ QueryBounds<Shape> bounds;
  const TileLane<Shape> own;
  bounds.load(task.queries);
  const auto finish = [&](std::size_t tile, const Shape::Sums& sums) {
    const RowBounds<Shape> rows(task.rows, tile, own);
#pragma unroll
    for (unsigned c = 0; c < Shape::kQueryBlocks; ++c) {
#pragma unroll
      for (unsigned side = 0; side < 2; ++side) {
        const Column column = bounds.column(own.column(c, side), rows);
        const std::size_t query = blockIdx.y * Shape::kQueries + column.place;
#pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
          const unsigned place = own.row(0, half);
          const std::int32_t product = sums[0][c][2 * half + side];
          if (!passes(rows, 0, half, column, product)) continue;  // behind all relevant rows
          const std::size_t id = dealt_row(task.rows.tiles, tile, place);
          if (id >= task.rows.count || query >= task.queries.count) continue;
          if (!task.labels.counts(query, id, task.start + id)) continue;
          const std::size_t at = tile * kTileVectors + place;
          const CostInterval cost = cost_interval(task.problem, task.rows, task.queries.states[query], at, product,
                                                  rows.tile_norm, rows.tile_residual);
          if (task.relevant.add_if_clear(query, cost.lowest, cost.highest)) continue;
          atomicOr(&task.marks[query * task.words + at / kWordBits], 1u << at % kWordBits);
        }
      }
    }
  };
  multiply_tiles<Shape, kResident>(task.rows, task.queries.values, 0, task.rows.tiles, finish);
}

// Measures the marked rows of one query in a range of words, and takes the marks away.
__global__ void count_marked_kernel(Piece piece, CanonicalQueries queries, std::size_t tiles, RelevantRows relevant,
                                    std::uint32_t* marks, std::size_t words, unsigned long long* statistics) {
  const unsigned q = blockIdx.x;
  const std::size_t begin = blockIdx.y * kWordsPerBlock;
  const std::size_t end = begin + kWordsPerBlock < words ? begin + kWordsPerBlock : words;
  unsigned measured = 0;
  for (std::size_t w = begin + team_of_block(); w < end; w += teams_in_block()) {
    std::uint32_t& word = marks[q * words + w];
    const std::uint32_t marked = word;
    for (std::uint32_t left = marked; left != 0; left &= left - 1) {
      const std::size_t at = w * kWordBits + static_cast<unsigned>(__ffs(static_cast<int>(left))) - 1;
      const std::size_t id = dealt_row(tiles, at / kTileVectors, at % kTileVectors);
      const CanonicalRow row(piece.rows, id, piece.metric);
      double distance[1];
      canonical_distances<1>(piece.metric, queries, {q}, row, distance);
      if (team_lane() != 0) continue;
      relevant.add(q, make_key(piece.metric, distance[0], piece.start + id));
      ++measured;
    }
    if (marked != 0 && team_lane() == 0) word = 0;  // the shuffles above come after every lane's reading
  }
  if (statistics && measured != 0) atomicAdd(&statistics[0], static_cast<unsigned long long>(measured));
}

}  // namespace

void count_all(const Piece& piece, const CanonicalQueries& queries, std::size_t count, const Labels& labels,
               const RelevantRows& relevant, cudaStream_t stream) {
  const std::size_t groups = blocks_for(count, kQueriesAtOnce);
  const dim3 blocks(static_cast<unsigned>(blocks_for(piece.rows.count, kRowsPerBlock)),
                    groups < kMostGridRows ? static_cast<unsigned>(groups) : kMostGridRows);
  launch(count_all_kernel, blocks, kThreads, 0, stream, piece, queries, count, labels, relevant);
}

void count_by_scan(const Problem& problem, const Piece& piece, const PackedRows& rows, const CanonicalQueries& canonical,
                   const PackedQueries& queries, const Labels& labels, const RelevantRows& relevant, std::uint32_t* marks,
                   unsigned long long* statistics, cudaStream_t stream) {
  const std::size_t words = mark_words(rows.count);
  const CountTask task{problem, rows, queries, piece.start, labels, relevant, marks, words};
  if (rows.chunks <= kResidentChunks) {
    launch_products<Shape, true>(count_kernel<true>, task, rows.chunks, queries.count, rows.tiles, stream);
  } else {
    launch_products<Shape, false>(count_kernel<false>, task, rows.chunks, queries.count, rows.tiles, stream);
  }
  const dim3 blocks(static_cast<unsigned>(queries.count), static_cast<unsigned>(blocks_for(words, kWordsPerBlock)));
  launch(count_marked_kernel, blocks, kThreads, 0, stream, piece, canonical, rows.tiles, relevant, marks, words, statistics);
}

}  // namespace iiae::cuda
