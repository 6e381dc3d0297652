// The inner loops, one table of them for every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "canonical.h"
#include "cpu/packed.h"
#include "rows.h"

namespace iiae {

// The rows of a strip that a scan found for one query, ascending; rows past the strip's count may be among the last.
struct Hits {
  std::uint32_t* rows;  // of the strip
  std::int32_t* sums;   // product + init; the bits of a float for Format::kFloat32
  std::size_t count;

  // Empties the list; what was in it, of rows below `most_rows`, can be read until the next scan.
  Hits taken(std::size_t most_rows) {
    Hits all = *this;
    count = 0;
    while (all.count > 0 && all.rows[all.count - 1] >= most_rows) --all.count;
    return all;
  }
};

// Room for the hits of a number of queries in strips of up to `groups` groups.
class HitLists {
 public:
  HitLists(std::size_t queries, std::size_t groups) : lists_(queries) {
    const std::size_t room = (groups + 1) * kGroup;  // whole vectors are written, the last one past the count
    memory_.reserve(queries * room * 2 * sizeof(std::uint32_t));
    auto* at = reinterpret_cast<std::uint32_t*>(memory_.get());
    for (Hits& hits : lists_) {
      hits = {at, reinterpret_cast<std::int32_t*>(at + room), 0};
      at += 2 * room;
    }
  }
  Hits& operator[](std::size_t query) { return lists_[query]; }
  Hits* get() { return lists_.data(); }

 private:
  AlignedBytes memory_;
  std::vector<Hits> lists_;
};

struct ScanTask {
  const Strip* strip;
  std::size_t first_group;
  std::size_t last_group;  // not included
  Format format;
  std::size_t steps;
  const std::byte* queries;  // tiles of Kernels::tile queries, [tile][step][query][4 bytes]; the last tile may be narrower
  std::size_t query_count;
  const QueryBound* bounds;  // (query_count,)
  Hits* hits;                // (query_count,), appended to
  std::byte* scratch;        // 64 bytes a query
};

// Dimensions beyond this many steps are scanned in blocks, so that a block of a row group stays in the first-level cache.
inline constexpr std::size_t kStepsPerBlock = 256;

// Smaller scales than this would lose float64 precision; nothing that short is told from zero.
inline constexpr double kLeastScale = 1e-280;

// What quantize() found out about a vector r = a (P + E).
struct Quantized {
  double scale;     // a
  double norm;      // |P|, rounded up
  double residual;  // |E|, rounded up
};

struct Kernels {
  const char* name;
  std::size_t tile;  // queries that are scanned together; what is left over goes into tiles of half of it, then of one
  bool bias8;        // int8 products come with 128 times the sum of the query's values added
  bool fast_int8;    // int8 products are cheaper than int16 ones
  // Converts row i to float64; the squared norm for cosine (see canonical.inl).
  double (*load_row)(const Rows& rows, std::size_t i, Metric metric, double* values);
  double (*distance)(Metric metric, std::size_t dim, const double* q, double q_sq_norm, const double* x, double x_sq_norm);
  double (*distance_to_row)(Metric metric, const Rows& rows, std::size_t i, const double* q, double q_sq_norm, double* buffer);
  // The sum of squares of the first n values of a row that load_row gave; NaN if any of its values is not finite.
  double (*check)(std::size_t n, std::size_t dim, const double* values);
  // out = x * factor - centre; returns the sum of squares.
  double (*centre)(std::size_t n, const double* x, double factor, const double* centre, double* out);
  // Writes a vector of norm `norm` in low precision, with a scale of at least `least_scale` > 0.
  Quantized (*quantize)(Format format, std::size_t n, const double* vector, double norm, double least_scale, std::byte* out);
  // [vector][step] to [step][vector].
  void (*interleave)(std::size_t vectors, std::size_t steps, const std::uint32_t* from, std::uint32_t* to);
  void (*scan)(const ScanTask& task);
};

// The tables in order of preference, the best first; those that this machine cannot run are left out.
const std::vector<const Kernels*>& supported_kernels();

// The table in use: the best one that proved equal to the scalar code on this machine, or the one that `IIAE_ISA` or
// select_kernels() names.
const Kernels& kernels();
void select_kernels(const std::string& name);

}  // namespace iiae
