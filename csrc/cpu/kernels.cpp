#include "cpu/kernels.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cpu/isa.h"
#include "cpu/packing.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#endif

namespace iiae {

namespace {

using SampleHits = std::vector<std::vector<std::pair<std::uint32_t, std::int32_t>>>;  // [query]: row and sum of every hit

// What a table's scan reports for rows and queries of small integers, with bounds that about half of the rows pass.
SampleHits sample_scan(const Kernels& kernels, Format format) {
  constexpr std::size_t kRows = 37;
  constexpr std::size_t kWidth = 1231;  // more than one block of dimensions, and no multiple of a step
  const std::size_t count = 2 * kernels.tile + kernels.tile / 2 + 1;
  std::vector<float> values((kRows + count) * kWidth);
  std::uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<std::int32_t>(state >> 24) - 128) + (state & 0x10000u ? 1.0f : 0.0f);
  }
  const auto rows_of = [&](std::size_t first, std::size_t rows) {
    const auto* data = reinterpret_cast<const std::byte*>(values.data() + first * kWidth);
    return Rows{data, rows, kWidth, kWidth * sizeof(float), DType::kFloat32};
  };
  const Rows rows = rows_of(0, kRows);
  const Problem problem(scalar::kKernels, Metric::kSqEuclidean, rows);
  Strip strip;
  for (std::size_t i = 0; i < kRows; ++i) strip.rows.push_back({.id = static_cast<std::uint32_t>(i)});
  pack_strip(kernels, problem, format, rows, strip);
  std::vector<std::uint32_t> query_ids(count);
  for (std::size_t i = 0; i < count; ++i) query_ids[i] = static_cast<std::uint32_t>(i);
  const PackedQueries queries(kernels, problem, format, rows_of(kRows, count), query_ids, 0, count);
  std::vector<QueryBound> bounds(count);
  for (std::size_t q = 0; q < count; ++q) {
    PackedQueries::Scale scale;
    queries.bound(q, strip, 0.5 * 2.0 * 5461.0 * kWidth, bounds[q], scale);
  }
  HitLists lists(count, strip.groups);
  const AlignedBytes scratch(count * kGroup * 4);
  for (std::size_t group = 0; group < strip.groups; ++group) {
    kernels.scan(
        {&strip, group, group + 1, format, queries.steps(), queries.data(), count, bounds.data(), lists.get(), scratch.get()});
  }
  SampleHits found(count);
  for (std::size_t q = 0; q < count; ++q) {
    for (std::size_t i = 0; i < lists[q].count; ++i) found[q].emplace_back(lists[q].rows[i], lists[q].sums[i]);
  }
  return found;
}

// Whether a table's integer scans agree with the scalar ones on this machine. A processor, hypervisor or compiler that gets an
// instruction wrong costs speed then, not correct results.
bool proves_equal(const Kernels& candidate) {
  for (const Format format : {Format::kInt16, Format::kInt8}) {
    Kernels reference = scalar::kKernels;
    const SampleHits expected = sample_scan(reference, format);
    const SampleHits found = sample_scan(candidate, format);
    const std::size_t common = std::min(expected.size(), found.size());
    if (!std::equal(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(common), expected.begin())) return false;
  }
  return true;
}

std::vector<const Kernels*> detect() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  if (has_avx512 && __builtin_cpu_supports("avx512vnni")) found.push_back(&avx512_vnni::kKernels);
  if (has_avx512) found.push_back(&avx512::kKernels);
  if (has_avx2) found.push_back(&avx2::kKernels);
#elif defined(__aarch64__)
#if defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found.push_back(&neon_dot::kKernels);
#elif defined(__APPLE__)
  found.push_back(&neon_dot::kKernels);  // every Apple processor that runs macOS has it
#endif
  found.push_back(&neon::kKernels);
#endif
  found.push_back(&scalar::kKernels);
  return found;
}

const Kernels* find(const std::string& name) {
  std::string names;
  for (const Kernels* one : supported_kernels()) {
    if (one->name == name) return one;
    names += std::string(names.empty() ? "" : ", ") + one->name;
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available here; available are " + names);
}

std::atomic<const Kernels*> selected{nullptr};

}  // namespace

const std::vector<const Kernels*>& supported_kernels() {
  static const std::vector<const Kernels*> found = detect();
  return found;
}

const Kernels& kernels() {
  const Kernels* current = selected.load();
  if (!current) {
    const char* wanted = std::getenv("IIAE_ISA");
    if (wanted && *wanted) {
      current = find(wanted);
    } else {
      const auto& all = supported_kernels();
      current = *std::find_if(all.begin(), all.end(), [](const Kernels* one) { return proves_equal(*one); });
    }
    selected = current;
  }
  return *current;
}

void select_kernels(const std::string& name) { selected = find(name); }

}  // namespace iiae
