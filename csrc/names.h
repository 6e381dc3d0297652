// Names by which Python calls metrics and dtypes.
#pragma once

#include <map>
#include <stdexcept>
#include <string>

#include "rows.h"

namespace iiae {

struct DTypeInfo {
  DType dtype;
  char kind;  // as numpy stores it; bfloat16 travels as uint16
  std::size_t size;
};

inline DTypeInfo parse_dtype(const std::string& name) {
  static const std::map<std::string, DTypeInfo> known = {
      {"float32", {DType::kFloat32, 'f', 4}}, {"float16", {DType::kFloat16, 'f', 2}}, {"bfloat16", {DType::kBFloat16, 'u', 2}},
      {"float64", {DType::kFloat64, 'f', 8}}, {"uint8", {DType::kUInt8, 'u', 1}},     {"int8", {DType::kInt8, 'i', 1}},
  };
  const auto found = known.find(name);
  if (found == known.end()) throw std::invalid_argument("dtype '" + name + "' is not known to the engine");
  return found->second;
}

inline Metric parse_metric(const std::string& name) {
  static const std::map<std::string, Metric> known = {
      {"sqeuclidean", Metric::kSqEuclidean},    {"euclidean", Metric::kEuclidean},    {"cosine", Metric::kCosine},
      {"inner_product", Metric::kInnerProduct}, {"gaussian_kl", Metric::kGaussianKL}, {"gaussian_w2", Metric::kGaussianW2},
  };
  const auto found = known.find(name);
  if (found == known.end()) throw std::invalid_argument("metric '" + name + "' is not known to the engine");
  return found->second;
}

}  // namespace iiae
