#include "cpu/search.h"

#include <atomic>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "cpu/brute_force.h"
#include "cpu/kernels.h"
#include "cpu/packing.h"
#include "cpu/parallel.h"
#include "cpu/scan.h"

namespace iiae {

namespace {

std::atomic<Method> selected{Method::kAuto};

// A scan has to pack the rows, which costs as much as a few queries by brute force.
constexpr std::size_t kScanQueries = 4;
constexpr std::size_t kScanRows = 512;
constexpr std::size_t kScanShare = 8;       // a scan pays if k is at most this share of the rows
constexpr std::size_t kPackedQueries = 32;  // up to this many queries, memory traffic decides, not arithmetic

// Rows that masks which all queries share leave; those masks are done with then.
Piece make_piece(const Rows& rows, std::size_t start, Filter& filter) {
  Piece piece{rows, start, {}};
  for (std::optional<Mask>* mask : {&filter.allowed, &filter.excluded}) {
    if (!*mask || (*mask)->query_stride != 0) continue;
    const bool wanted = mask == &filter.allowed;
    if (!piece.selected) {
      piece.ids.resize(rows.count);
      std::iota(piece.ids.begin(), piece.ids.end(), 0u);
      piece.selected = true;
    }
    std::erase_if(piece.ids, [&](std::uint32_t id) { return (*mask)->at(0, id) != wanted; });
    mask->reset();
  }
  return piece;
}

}  // namespace

Method choose_method(const Kernels& kernels, std::size_t queries, std::size_t rows, std::size_t width) {
  Method method = selected;
  if (method == Method::kAuto) {
    const bool scan = queries >= kScanQueries && rows >= kScanRows;
    method = !scan ? Method::kBruteForce : kernels.fast_int8 ? Method::kInt8 : Method::kInt16;
  }
  if (method == Method::kInt8 && width > max_width(Format::kInt8)) method = Method::kInt16;
  if (width > max_width(Format::kInt16)) method = Method::kBruteForce;
  return method;
}

void select_method(const std::string& name) {
  static constexpr std::pair<const char*, Method> kNames[] = {{"auto", Method::kAuto},
                                                              {"brute_force", Method::kBruteForce},
                                                              {"int8", Method::kInt8},
                                                              {"int16", Method::kInt16},
                                                              {"float32", Method::kFloat32}};
  for (const auto& [known, method] : kNames) {
    if (name == known) {
      selected = method;
      return;
    }
  }
  throw std::invalid_argument("method '" + name + "' is not known; known are auto, brute_force, int8, int16, float32");
}

Searcher::Searcher(const Rows& queries, Metric metric, std::size_t k, std::size_t threads, float* distances,
                   std::int64_t* indices)
    : queries_(queries), metric_(metric), k_(k), threads_(threads), results_(metric, queries.count, k, distances, indices) {}

void Searcher::scan(const Rows& rows, std::size_t start, const Filter& filter, const PackedPiece* packed) {
  if (queries_.count == 0) return;
  const Kernels& table = kernels();
  std::vector<std::uint32_t> which(queries_.count);
  std::iota(which.begin(), which.end(), 0u);
  const bool automatic = selected == Method::kAuto;
  const bool short_list = k_ <= rows.count / kScanShare;
  if (packed &&
      (selected == Method::kInt8 || (automatic && short_list && (table.fast_int8 || queries_.count <= kPackedQueries)))) {
    const Piece piece{rows, start, {}};
    const auto format = automatic ? std::nullopt : std::optional(Format::kInt8);
    certified_scan(table, format, metric_, queries_, which, piece, filter, k_, threads_, packed, results_);
    return;
  }
  Filter remaining = filter;
  const Piece piece = make_piece(rows, start, remaining);
  if (piece.count() == 0) return;
  const Method method = choose_method(table, queries_.count, piece.count(), rows.dim);
  if (method == Method::kBruteForce || (automatic && k_ > piece.count() / kScanShare)) {
    brute_force(table, metric_, queries_, which, piece, remaining, k_, threads_, results_);
    return;
  }
  std::optional<Format> format;
  if (!automatic) {
    format = method == Method::kInt8 ? Format::kInt8 : method == Method::kInt16 ? Format::kInt16 : Format::kFloat32;
  }
  certified_scan(table, format, metric_, queries_, which, piece, remaining, k_, threads_, nullptr, results_);
}

}  // namespace iiae
