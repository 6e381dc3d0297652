// The engine without Python, for processors that the tests' own interpreter does not run on: searches and rankings by every
// instruction set and method must have the bits of the scalar brute force, which is tested against an independent oracle.
//
//     engine_test CASES NAME...   the NAMEs are the instruction sets that must be there

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/ranking.h"
#include "cpu/search.h"
#include "cpu/validate.h"
#include "names.h"

using namespace iiae;

namespace {

constexpr Metric kMetrics[] = {Metric::kSqEuclidean,  Metric::kEuclidean,  Metric::kCosine,
                               Metric::kInnerProduct, Metric::kGaussianKL, Metric::kGaussianW2};
constexpr const char* kDTypes[] = {"float32", "float64", "float16", "bfloat16", "int8", "uint8"};
constexpr const char* kMethods[] = {"brute_force", "int8", "int16", "float32", "auto"};

struct Matrix {
  std::vector<std::byte> data;
  Rows rows;

  Matrix(std::size_t count, std::size_t dim, const DTypeInfo& info)
      : data(count * dim * info.size), rows{data.data(), count, dim, dim * info.size, info.dtype} {}
};

// Rows whose values repeat often enough for ties, at a scale of the case's own.
Matrix make_rows(std::mt19937& random, std::size_t count, std::size_t dim, const DTypeInfo& info, double scale, double offset) {
  std::normal_distribution<double> normal;
  std::uniform_int_distribution<int> byte(0, 255);
  Matrix made(count, dim, info);
  const DType dtype = info.dtype;
  std::byte* to = made.data.data();
  for (std::size_t i = 0; i < count * dim; ++i, to += info.size) {
    const double value = offset + scale * normal(random);
    const auto narrow = static_cast<float>(value);
    std::uint32_t bits;
    std::memcpy(&bits, &narrow, sizeof bits);
    const auto upper = static_cast<std::uint16_t>(bits >> 16);
    // Any pattern of a half but those of infinity and NaN.
    const auto half = static_cast<std::uint16_t>((byte(random) & 0xbb) << 8 | byte(random));
    const auto small = static_cast<std::uint8_t>(byte(random));
    const void* from = dtype == DType::kFloat64    ? static_cast<const void*>(&value)
                       : dtype == DType::kFloat32  ? static_cast<const void*>(&narrow)
                       : dtype == DType::kBFloat16 ? static_cast<const void*>(&upper)
                       : dtype == DType::kFloat16  ? static_cast<const void*>(&half)
                                                   : static_cast<const void*>(&small);
    std::memcpy(to, from, info.size);
  }
  for (std::size_t i = 1; i < count; i += 5)
    std::memcpy(made.data.data() + i * made.rows.stride, made.data.data(), made.rows.stride);
  return made;
}

Matrix lifted(const Matrix& from, Metric metric) {
  Matrix made(from.rows.count, lifted_dim(metric, from.rows.dim), parse_dtype("float64"));
  lift_rows(from.rows, metric, reinterpret_cast<double*>(made.data.data()), 1);
  return made;
}

struct Found {
  std::vector<float> distances;
  std::vector<std::int64_t> indices;
  std::vector<std::vector<std::int64_t>> ranks;

  bool operator==(const Found& other) const {
    return indices == other.indices && ranks == other.ranks &&
           std::memcmp(distances.data(), other.distances.data(), distances.size() * sizeof(float)) == 0;
  }
};

Found find(const Rows& queries, const Rows& rows, Metric metric, std::size_t k, std::size_t threads, const Filter& filter,
           const std::vector<std::int64_t>& labels) {
  Found found{std::vector<float>(queries.count * k), std::vector<std::int64_t>(queries.count * k), {}};
  Searcher searcher(queries, metric, k, threads, found.distances.data(), found.indices.data());
  searcher.scan(rows, 0, filter, nullptr);
  searcher.finish();
  Ranking ranking(queries, metric, labels.data(), nullptr, threads);
  ranking.collect(rows, 0, labels.data());
  ranking.count(rows, 0, labels.data());
  found.ranks = ranking.ranks();
  return found;
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned cases = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 0;
  std::string names;
  for (const Kernels* table : supported_kernels()) names += std::string(names.empty() ? "" : " ") + table->name;
  std::string wanted;
  for (int i = 2; i < argc; ++i) wanted += std::string(wanted.empty() ? "" : " ") + argv[i];
  if (cases == 0 || names != wanted) {
    std::printf("%u cases; instruction sets: %s; wanted: %s\n", cases, names.c_str(), wanted.c_str());
    return 2;
  }
  std::printf("by default: %s\n", kernels().name);
  for (unsigned seed = 0; seed < cases; ++seed) {
    std::mt19937 random(seed);
    const auto draw = [&](std::size_t from, std::size_t to) {
      return std::uniform_int_distribution<std::size_t>(from, to)(random);
    };
    const Metric metric = kMetrics[draw(0, 5)];
    const DTypeInfo info = parse_dtype(kDTypes[draw(0, 5)]);
    const std::size_t dim = 2 * (draw(0, 9) == 0 ? draw(300, 700) : draw(1, 40));
    const std::size_t count = draw(1, dim > 100 ? 150 : 900);
    const std::size_t k = draw(1, std::min<std::size_t>(count, draw(0, 3) == 0 ? count : 20));
    const double scale = draw(0, 2) == 0 ? std::pow(10.0, static_cast<double>(draw(0, 30)) - 15.0) : 1.0;
    const double offset = draw(0, 3) == 0 ? 50.0 * scale : 0.0;
    Matrix queries = make_rows(random, draw(1, 20), dim, info, scale, offset);
    Matrix rows = make_rows(random, count, dim, info, scale, offset);
    validate(queries.rows, metric, "queries", 0, 1);
    validate(rows.rows, metric, "rows", 0, 1);
    if (is_gaussian(metric)) {
      queries = lifted(queries, metric);
      rows = lifted(rows, metric);
    }
    std::vector<std::uint8_t> mask(queries.rows.count * count);
    for (std::uint8_t& one : mask) one = draw(0, 3) != 0;
    Filter filter;
    if (draw(0, 2) == 0) filter.allowed = Mask{mask.data(), draw(0, 1) ? static_cast<std::ptrdiff_t>(count) : 0, 1};
    std::vector<std::int64_t> labels(std::max(count, queries.rows.count));
    for (std::int64_t& label : labels) label = static_cast<std::int64_t>(draw(0, 4));

    select_kernels("scalar");
    select_method("brute_force");
    const Found expected = find(queries.rows, rows.rows, metric, k, 1, filter, labels);
    for (const Kernels* table : supported_kernels()) {
      select_kernels(table->name);
      for (const char* method : kMethods) {
        select_method(method);
        const std::size_t threads = draw(1, 2);
        if (find(queries.rows, rows.rows, metric, k, threads, filter, labels) == expected) continue;
        std::printf("case %u: %s by %s with %zu threads differs from scalar brute force\n", seed, method, table->name, threads);
        return 1;
      }
    }
  }
  std::printf("%u cases are equal on %s\n", cases, names.c_str());
  return 0;
}
