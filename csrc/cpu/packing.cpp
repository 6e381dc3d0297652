#include "cpu/packing.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace iiae {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::size_t kStripBytes = 128 << 10;
constexpr std::size_t kMaxStripRows = 1024;
// Relative room for fp32 rounding: of a bound's two products and their sum, and of its factors.
constexpr double kFloatRoom = 0x1p-20;
// Beyond these, fp32 arithmetic on a bound could overflow or lose small rows.
constexpr double kLargestFactor = 1e30;
constexpr double kLargestBound = 1e37;

}  // namespace

std::size_t strip_rows(Format format, std::size_t width) {
  const std::size_t rows = kStripBytes / (4 * steps(format, width)) / kGroup * kGroup;
  return std::clamp(rows, kGroup, kMaxStripRows);
}

void pack_strip(const Kernels& kernels, const Problem& problem, Format format, const Rows& rows, Strip& strip) {
  strip.count = strip.rows.size();
  strip.groups = (strip.count + kGroup - 1) / kGroup;
  strip.scale_unit = strip.offset_unit = strip.residual = strip.norm = strip.lifted_norm = strip.largest_offset = 0.0;
  strip.inverse_scale.assign(strip.groups * kGroup, 1.0f);
  strip.threshold.assign(strip.groups * kGroup, kInfinity);
  const std::size_t row_steps = steps(format, problem.width());
  const std::size_t size = checked_product(strip.groups * kGroup * 4, row_steps, "packed rows");
  strip.data.reserve(size);
  std::vector<double> row(problem.dim());
  std::vector<double> lifted(problem.width());
  std::vector<std::uint32_t> group(kGroup * row_steps);
  std::vector<Quantized> quantized(strip.count);
  for (std::size_t i = 0; i < strip.count; ++i) {
    if (i + kRowsAhead < strip.count) prefetch_row(rows, strip.rows[i + kRowsAhead].id);
    const double sq_norm = kernels.load_row(rows, strip.rows[i].id, problem.metric(), row.data());
    const Problem::Lifted found = problem.lift_row(row.data(), sq_norm, lifted.data());
    strip.rows[i].offset = found.offset;
    if (std::isnan(found.offset)) std::fill(lifted.begin(), lifted.end(), 0.0);
    auto* out = reinterpret_cast<std::byte*>(group.data() + i % kGroup * row_steps);
    const Quantized packed = kernels.quantize(format, problem.width(), lifted.data(), found.norm, kLeastScale, out);
    quantized[i] = packed;
    if (i % kGroup == kGroup - 1 || i + 1 == strip.count) {
      std::fill(group.begin() + static_cast<std::ptrdiff_t>((i % kGroup + 1) * row_steps), group.end(), 0u);
      auto* to = reinterpret_cast<std::uint32_t*>(strip.data.get()) + i / kGroup * kGroup * row_steps;
      kernels.interleave(kGroup, row_steps, group.data(), to);
    }
    strip.rows[i].scale = packed.scale;
    strip.residual = std::max(strip.residual, packed.residual);
    strip.norm = std::max(strip.norm, packed.norm);
    strip.lifted_norm = std::max(strip.lifted_norm, found.norm);
    strip.scale_unit = std::max(strip.scale_unit, packed.scale);
    if (found.norm == 0.0) strip.rows[i].scale = 0.0;  // any scale is right for zeros: they get the unit below
    if (!std::isnan(found.offset)) strip.largest_offset = std::max(strip.largest_offset, std::fabs(found.offset));
  }
  for (std::size_t i = 0; i < strip.count; ++i) {
    if (strip.rows[i].scale == 0.0) strip.rows[i].scale = strip.scale_unit;
    const double offset = std::fabs(strip.rows[i].offset) / strip.rows[i].scale;
    if (offset > strip.offset_unit) strip.offset_unit = offset;  // NaN is not
  }
  for (std::size_t i = 0; i < strip.count; ++i) {
    if (format != Format::kFloat32) {
      // Both parts of the bound, of the norm and of the residual (see packed.h), are at most this share of the strip's.
      const double share = std::max(quantized[i].norm / strip.norm, quantized[i].residual / strip.residual);
      strip.rows[i].error_share = static_cast<float>(std::min(1.0, share * (1.0 + kFloatRoom)));
    }
    const double factor = strip.scale_unit / strip.rows[i].scale;
    const double threshold = strip.offset_unit > 0.0 ? strip.rows[i].offset / strip.rows[i].scale / strip.offset_unit : 0.0;
    const bool fits = factor <= kLargestFactor && !std::isnan(strip.rows[i].offset);
    strip.inverse_scale[i] = fits ? static_cast<float>(factor) : 1.0f;
    strip.threshold[i] = fits ? static_cast<float>(threshold - std::fabs(threshold) * kFloatRoom) : -kInfinity;
  }
}

void pack_rows(const Kernels& kernels, const Problem& problem, Format format, const Piece& piece, const Deal& deal,
               std::size_t first, std::size_t last, std::size_t threads, std::vector<Strip>& strips) {
  if (strips.size() < last - first) strips.resize(last - first);
  parallel_for(last - first, threads, [&](std::size_t i) {
    strips[i].rows.clear();
    for (std::size_t row = first + i; row < deal.rows; row += deal.strips) strips[i].rows.push_back({.id = piece.id(row)});
    pack_strip(kernels, problem, format, piece.rows, strips[i]);
  });
}

PackedPiece::PackedPiece(const Kernels& kernels, Metric metric, const Rows& rows, std::size_t threads)
    : problem(kernels, metric, rows) {
  if (problem.width() > max_width(Format::kInt8)) throw std::invalid_argument("rows are too wide for int8");
  const Deal deal(Format::kInt8, problem.width(), rows.count);
  pack_rows(kernels, problem, Format::kInt8, Piece{rows, 0, {}}, deal, 0, deal.strips, threads, strips);
}

PackedQueries::PackedQueries(const Kernels& kernels, const Problem& problem, Format format, const Rows& queries,
                             const std::vector<std::uint32_t>& ids, std::size_t first, std::size_t count)
    : kernels_(kernels),
      problem_(problem),
      format_(format),
      steps_(iiae::steps(format, problem.width())),
      data_(checked_product(checked_product(count, steps_, "packed queries"), 4, "packed queries")),
      lifted_(count),
      quantized_(count),
      bias_(count, 0.0) {
  std::vector<double> row(problem.dim());
  std::vector<double> lifted(problem.width());
  std::vector<std::uint32_t> tile(kernels.tile * steps_);
  std::size_t tile_begin = 0;
  std::size_t tile_size = 0;
  for (std::size_t q = 0; q < count; ++q) {
    if (q == tile_begin + tile_size) {
      tile_begin = q;
      tile_size = count - q >= kernels.tile ? kernels.tile : count - q >= kernels.tile / 2 ? kernels.tile / 2 : 1;
    }
    auto* out = reinterpret_cast<std::byte*>(tile.data() + (q - tile_begin) * steps_);
    const double sq_norm = kernels.load_row(queries, ids[first + q], problem.metric(), row.data());
    lifted_[q] = problem.lift_query(row.data(), sq_norm, lifted.data());
    if (std::isnan(lifted_[q].offset)) std::fill(lifted.begin(), lifted.end(), 0.0);
    quantized_[q] = kernels.quantize(format, problem.width(), lifted.data(), lifted_[q].norm, problem.least_query_scale(), out);
    if (q + 1 == tile_begin + tile_size) {
      auto* to = reinterpret_cast<std::uint32_t*>(data_.get()) + tile_begin * steps_;
      kernels.interleave(tile_size, steps_, tile.data(), to);
    }
    if (format == Format::kInt8 && kernels.bias8) {
      const auto* values = reinterpret_cast<const std::int8_t*>(out);
      for (std::size_t j = 0; j < 4 * steps_; ++j) bias_[q] += 128.0 * values[j];
    }
  }
}

void PackedQueries::bound(std::size_t query, const Strip& strip, double highest_cost, QueryBound& bound, Scale& scale) const {
  const Problem::Lifted& lifted = lifted_[query];
  const Quantized& packed = quantized_[query];
  const bool open = highest_cost == std::numeric_limits<double>::infinity();
  scale.offset = lifted.offset;
  scale.unit = packed.scale;
  scale.slack = problem_.slack(lifted, open ? 0.0 : highest_cost, strip.largest_offset, strip.lifted_norm);
  // product >= (query offset + row offset - cost) / (unit * row scale) - error, with both terms rounded down.
  const double a = (lifted.offset - highest_cost - scale.slack) / packed.scale / strip.scale_unit;
  const double b = strip.offset_unit / packed.scale;
  const bool fits = !open && std::fabs(a) < kLargestBound && b < kLargestBound;
  bound.a = fits ? static_cast<float>(a - std::fabs(a) * kFloatRoom) : -kInfinity;
  bound.b = fits ? static_cast<float>(b) : 0.0f;
  // Cauchy-Schwarz on the residuals (see packed.h), and what fp32 loses below its smallest numbers.
  scale.error = packed.residual * strip.norm + (packed.norm + packed.residual) * strip.residual;
  scale.error += 1e-44 * (bound.b + kLargestFactor);
  if (format_ == Format::kFloat32) {
    // A sum of n products, fused or not, is off by at most n 2^-24 |P||R|, and a little more for its start value.
    const double additions = static_cast<double>(std::min(steps_, kStepsPerBlock) + steps_ / kStepsPerBlock + 8);
    scale.error = (scale.error + additions * 0x1p-24 * packed.norm * strip.norm) * (1.0 + 2e-5) + 1e-30;
    bound.init.real = static_cast<float>(scale.error);
    scale.init = bound.init.real;
  } else {
    // Integers above 2^24 are rounded when they become fp32, those below 2^31 by at most 128.
    scale.error = std::ceil(scale.error) + 256.0;
    scale.init = scale.error;
    bound.init.integer = static_cast<std::int32_t>(scale.error - bias_[query]);
  }
}

}  // namespace iiae
