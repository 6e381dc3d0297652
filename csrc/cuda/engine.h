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

// Bytes of packed rows.
std::size_t packed_bytes(Metric metric, const Rows& rows);

// Packs rows for scans; `rows` are lifted already if Gaussian.
void pack(Metric metric, const Rows& rows, std::byte* packed, Stream stream);

// Whether rows of so many values (lifted, if Gaussian) can be scanned; others are measured against every query.
bool can_scan(Metric metric, std::size_t dim);

struct Search {
  Metric metric;
  Rows rows;
  std::size_t start;  // index of the first row
  bool scans;         // packed rows; otherwise all pairs are measured
  Rows queries;
  Filter filter;
  std::size_t k;
  Key* best;  // (queries, k), sorted: the best keys of earlier pieces, or kNoKey; updated
  // Null, or where is added up: how many candidates were measured, and how many queries had to be measured against all rows.
  unsigned long long* statistics;
};

// Workspace for `batch` queries at a time.
std::size_t workspace_bytes(const Search& search, std::size_t batch);

// Takes as many queries at a time as the workspace holds, which must be enough for one. `packed` has the rows in packed form if
// they are scanned.
void run(const Search& search, const std::byte* packed, std::byte* workspace, std::size_t workspace_size, Stream stream);

// Measures of the whole ranking of every query. For queries [first, first + count) at a time, with the same workspace: start(),
// collect() for every piece of the database, sort(), count() for every piece, rank().
struct Evaluation {
  Metric metric;
  Rows queries;
  const std::int64_t* query_labels;   // (queries,) numbers of labels, from 0 on
  const std::int64_t* row_labels;     // (rows of the database,); rows of a query's own label are relevant to it
  const std::int64_t* rows_by_label;  // (rows of the database,) row numbers, ordered by label
  const std::int64_t* label_starts;   // (labels + 1,) where the rows of each begin among them
  const std::int64_t* excluded_ids;   // (queries,) or null
  std::size_t most_relevant;          // rows that are relevant to one query
  std::size_t most_scanned;           // rows of a piece that count() gets in packed form; 0 if it never does
  const std::int64_t* cutoffs;        // (cutoff_count,), on the device too
  std::size_t cutoff_count;
  double* measures;  // (queries, 3 cutoff_count + 1): recall@k, precision@k, map@k for every cut-off, then map@all
  unsigned long long* statistics;  // see Search; only the first is added to
};

std::size_t workspace_bytes(const Evaluation& evaluation, std::size_t batch);
void start(const Evaluation& evaluation, std::size_t first, std::size_t count, std::byte* workspace, Stream stream);
void collect(const Evaluation& evaluation, const Rows& rows, std::size_t start, std::size_t first, std::size_t count,
             std::byte* workspace, Stream stream);
void sort(const Evaluation& evaluation, std::size_t count, std::byte* workspace, Stream stream);
void count(const Evaluation& evaluation, const Rows& rows, std::size_t start, const std::byte* packed, std::size_t first,
           std::size_t count, std::byte* workspace, Stream stream);
void rank(const Evaluation& evaluation, std::size_t first, std::size_t count, std::byte* workspace, Stream stream);

// Turns sorted keys into distances and indices; `indices` may be `best` itself.
void write(Metric metric, const Key* best, std::size_t count, float* distances, std::int64_t* indices, Stream stream);

// Lowers *first_bad to the index (counted from `start`) of the first row that the engine refuses, if there is one: for NaN,
// infinity, or a squared norm that fp32 distances can't hold. Gaussian rows are the packed [mean | logvar].
void validate(Metric metric, const Rows& rows, std::size_t start, unsigned long long* first_bad, Stream stream);

}  // namespace iiae::cuda
