// Brings rows and queries into the form that the scan kernels read.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/packed.h"
#include "cpu/parallel.h"
#include "cpu/piece.h"
#include "cpu/problem.h"

namespace iiae {

// The most dimensions that a format can take without overflow of its sums.
inline std::size_t max_width(Format format) { return format == Format::kInt8 ? 60'000 : 500'000; }

// Rows of a strip that stays in the second-level cache.
std::size_t strip_rows(Format format, std::size_t width);

// Packs the rows that strip.ids names; everything else in the strip is written anew, in the memory that it has.
void pack_strip(const Kernels& kernels, const Problem& problem, Format format, const Rows& rows, Strip& strip);

// How the rows of a piece are dealt out to strips: of `strips` strips, strip i takes rows i, i + strips, i + 2 strips, ... So
// every strip is a sample of the whole piece, whatever order its rows are in.
struct Deal {
  std::size_t rows;
  std::size_t strips;

  Deal(Format format, std::size_t width, std::size_t count)
      : rows(count), strips((count + strip_rows(format, width) - 1) / strip_rows(format, width)) {}
};

// Packs strips [first, last) of a deal into strips[0 ...].
void pack_rows(const Kernels& kernels, const Problem& problem, Format format, const Piece& piece, const Deal& deal,
               std::size_t first, std::size_t last, std::size_t threads, std::vector<Strip>& strips);

// Packs a piece chunk by chunk, so that packed rows stay in the last-level cache, and calls visit(strips, count) for each.
template <class Visit>
void for_each_chunk(const Kernels& kernels, const Problem& problem, Format format, const Piece& piece, std::size_t threads,
                    std::vector<Strip>& strips, Visit visit) {
  constexpr std::size_t kChunkBytes = 8 << 20;
  const Deal deal(format, problem.width(), piece.count());
  const std::size_t bytes = strip_rows(format, problem.width()) * 4 * steps(format, problem.width());
  const std::size_t chunk = std::max<std::size_t>(1, kChunkBytes / bytes);
  for (std::size_t first = 0; first < deal.strips; first += chunk) {
    const std::size_t last = std::min(first + chunk, deal.strips);
    pack_rows(kernels, problem, format, piece, deal, first, last, threads, strips);
    visit(strips.data(), last - first);
  }
}

// All rows of a piece in int8, a quarter of the memory traffic of fp32: for searches of few queries, which wait for memory.
struct PackedPiece {
  Problem problem;
  std::vector<Strip> strips;

  PackedPiece(const Kernels& kernels, Metric metric, const Rows& rows, std::size_t threads);
};

// Queries in tiles, with what their bounds are made of.
class PackedQueries {
 public:
  // Those that ids[first .. first + count) name.
  PackedQueries(const Kernels& kernels, const Problem& problem, Format format, const Rows& queries,
                const std::vector<std::uint32_t>& ids, std::size_t first, std::size_t count);

  std::size_t count() const { return lifted_.size(); }
  std::size_t steps() const { return steps_; }
  const std::byte* data() const { return data_.get(); }

  // What candidates of a query in a strip are measured by. Costs are in units of the metric's cost (see problem.h).
  struct Scale {
    double offset;  // of the query
    double unit;    // a of the query
    double init;    // what the kernel's sums hold on top of the product
    double error;   // bound of |estimated - exact product|, in units of unit * row scale
    double slack;   // float64 rounding, in cost
  };

  // The bounds against which the kernel compares rows of `strip`, so that every row of a cost up to `highest_cost` passes; all
  // rows pass where fp32 can't hold the bounds.
  void bound(std::size_t query, const Strip& strip, double highest_cost, QueryBound& bound, Scale& scale) const;

 private:
  const Kernels& kernels_;
  const Problem& problem_;
  Format format_;
  std::size_t steps_;
  AlignedBytes data_;
  std::vector<Problem::Lifted> lifted_;
  std::vector<Quantized> quantized_;
  std::vector<double> bias_;  // what the kernel adds to every sum (see Kernels::bias8)
};

}  // namespace iiae
