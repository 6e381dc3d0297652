// Checks of values, done once before any search.
#pragma once

#include <cstdint>
#include <string>

#include "rows.h"

namespace iiae {

// Throws std::invalid_argument naming the first row of `rows` that has a NaN or an infinity, or a squared norm beyond what
// fp32 distances can hold. `name` and `start` say what to call it. Gaussian rows are the packed [mean | logvar].
void validate(const Rows& rows, Metric metric, const std::string& name, std::size_t start, std::size_t threads);

// Lifts packed Gaussian rows to (count, lifted_dim) float64.
void lift_rows(const Rows& rows, Metric metric, double* out, std::size_t threads);

}  // namespace iiae
