// Counts, for every query, the rows of a piece that come before its relevant ones.
#pragma once

#include "cuda/measure.cuh"
#include "cuda/relevant.cuh"

namespace iiae::cuda {

// By canonical distances of all pairs.
void count_all(const Piece& piece, const CanonicalQueries& queries, std::size_t count, const Labels& labels,
               const RelevantRows& relevant, cudaStream_t stream);

// Words of a query in which count_by_scan() marks rows.
inline std::size_t mark_words(std::size_t rows) { return (rows + kTileVectors - 1) / kTileVectors * (kTileVectors / 32); }

// By the certified scan, and canonical distances only where its bounds do not tell on which side of a relevant row a row is.
// `marks` has mark_words() for every query, all zero before and after.
void count_by_scan(const Problem& problem, const Piece& piece, const PackedRows& rows, const CanonicalQueries& canonical,
                   const PackedQueries& queries, const Labels& labels, const RelevantRows& relevant, std::uint32_t* marks,
                   unsigned long long* statistics, cudaStream_t stream);

}  // namespace iiae::cuda
