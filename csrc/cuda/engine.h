// Exact search in device memory, as the bindings call it. Every pointer is one of the device, every call is queued on a stream
// and returns at once; nothing is allocated, so that searches can be captured in a CUDA graph.
#pragma once

#include <cstddef>
#include <cstdint>

#include "canonical.h"
#include "cuda/filter.h"
#include "rows.h"

struct CUstream_st;

namespace iiae::cuda {

using Stream = CUstream_st*;  // a cudaStream_t, named without CUDA's headers

enum class Method { kAuto, kBruteForce, kInt8 };

// Bytes of packed rows.
std::size_t packed_bytes(Metric metric, const Rows& rows);

// Packs rows for scans; `rows` are lifted already if Gaussian.
void pack(Metric metric, const Rows& rows, std::byte* packed, Stream stream);

// Whether a search of so many queries scans packed rows, or measures all pairs.
bool scans(Method method, Metric metric, std::size_t queries, const Rows& rows, std::size_t k);

struct Search {
  Metric metric;
  Rows rows;
  std::size_t start;        // index of the first row
  const std::byte* packed;  // of the rows; null: all pairs are measured
  Rows queries;
  Filter filter;
  std::size_t k;
  Key* best;  // (queries, k), sorted: the best keys of earlier pieces, or kNoKey; updated
  // Null, or where is added up: how many candidates were measured, and how many queries had to be measured against all rows.
  unsigned long long* statistics;
};

// Workspace for `batch` queries at a time.
std::size_t workspace_bytes(const Search& search, std::size_t batch);

// Takes as many queries at a time as the workspace holds, which must be enough for one.
void run(const Search& search, std::byte* workspace, std::size_t workspace_size, Stream stream);

// Measures of the whole ranking of every query. For queries [first, first + count) at a time: measure() for every piece of the
// database, then rank(), with the same workspace.
struct Evaluation {
  Metric metric;
  Rows queries;
  std::size_t row_count;             // of the whole database
  const std::int64_t* query_labels;  // (queries,)
  const std::int64_t* row_labels;    // (row_count,); rows of a query's own label are relevant to it
  const std::int64_t* excluded_ids;  // (queries,) or null
  std::size_t most_relevant;         // rows that are relevant to one query
  const std::int64_t* cutoffs;       // (cutoff_count,), on the device too
  std::size_t cutoff_count;
  double* measures;  // (queries, 3 cutoff_count + 1): recall@k, precision@k, map@k for every cut-off, then map@all
};

std::size_t workspace_bytes(const Evaluation& evaluation, std::size_t batch);
void measure(const Evaluation& evaluation, const Rows& rows, std::size_t start, std::size_t first, std::size_t count,
             std::byte* workspace, Stream stream);
void rank(const Evaluation& evaluation, std::size_t first, std::size_t count, std::byte* workspace, Stream stream);

void write(Metric metric, const Key* best, std::size_t count, float* distances, std::int64_t* indices, Stream stream);

// Lowers *first_bad to the number of the first row that the engine refuses, if there is one: for NaN, infinity, or a squared
// norm that fp32 distances can't hold. Gaussian rows are the packed [mean | logvar].
void validate(Metric metric, const Rows& rows, unsigned long long* first_bad, Stream stream);

}  // namespace iiae::cuda
