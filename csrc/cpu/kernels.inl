// The inner loops, written over a type `Ops` that the including file defines: 16 rows as Ops::kVecs vectors of 32-bit lanes.
//
//   Int, Float            vectors of int32 and fp32
//   load(p), set(i)       Int from memory; every lane i
//   loadf, setf           the same for Float
//   multiply_add16(s, r, q)  s + r.q over pairs of int16; *q is the pair of a query, which all lanes get
//   Rows8 prepare8(r); multiply_add8(s, r, q)   s + r.q over fours of int8 (r prepared once for all queries)
//   bias8                 whether multiply_add8 adds 128 times the sum of q as well
//   multiply_add(s, r, q) fp32, fused or not
//   add(a, b)             Int or Float
//   kDoubles              how many doubles a vector of canonical.inl holds, 4 or 8
//   convert(i), multiply(a, b), below(a, b): bit mask of the lanes where a < b
//   append(hits, first, mask, sums)   append_hits() below, where there is something faster

#include "canonical.inl"

// The sum of squares of the first n of `dim` values; NaN if any of them is not finite.
inline double check(std::size_t n, std::size_t dim, const double* values) {
  return lane_sum(n, [&](auto at) { return at(values) * at(values); }) +
         lane_sum(dim, [&](auto at) { return at(values) * 0.0; });
}

// out = x * factor - centre; the sum of squares of the result.
inline double centre(std::size_t n, const double* x, double factor, const double* c, double* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = x[i] * factor - c[i];
  return lane_sum(n, [&](auto at) { return at(out) * at(out); });
}

inline double largest_magnitude(std::size_t n, const double* x) {
  Quad lanes[4] = {};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::size_t j = 0; j < 4; ++j) {
      Quad values;
      std::memcpy(&values, x + i + 4 * j, sizeof values);
      const Quad magnitudes = values < 0.0 ? -values : values;
      lanes[j] = magnitudes > lanes[j] ? magnitudes : lanes[j];
    }
  }
  double largest = 0.0;
  for (const Quad& lane : lanes) {
    for (std::size_t j = 0; j < 4; ++j) largest = lane[j] > largest ? lane[j] : largest;
  }
  for (; i < n; ++i) {
    const double magnitude = x[i] < 0.0 ? -x[i] : x[i];
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

template <class Value>
struct FourOf;
template <>
struct FourOf<float> {
  using Type = float __attribute__((vector_size(16)));
};
template <>
struct FourOf<std::int16_t> {
  using Type = std::int16_t __attribute__((vector_size(8)));
};
template <>
struct FourOf<std::int8_t> {
  using Type = std::int8_t __attribute__((vector_size(4)));
};

// Writes P = round(vector / scale), filled up with zeros to whole steps.
template <class Value>
inline Quantized round_to(std::size_t n, const double* vector, double norm, double scale, Value* out) {
  using Values = typename FourOf<Value>::Type;
  using Ints = std::int32_t __attribute__((vector_size(16)));
  constexpr std::size_t kPerStep = 4 / sizeof(Value);
  const double inverse = 1.0 / scale;
  Quad residuals = {};
  const auto round_four = [&](const Quad& values) {
    constexpr double kRound = 0x1.8p52;  // adding and subtracting it rounds to the nearest integer
    const Quad exact = values * inverse;
    if constexpr (sizeof(Value) == 4) {
      const Values rounded = __builtin_convertvector(exact, Values);
      const Quad difference = exact - __builtin_convertvector(rounded, Quad);
      residuals += difference * difference;
      return rounded;
    } else {
      const Quad rounded = (exact + kRound) - kRound;
      const Quad difference = exact - rounded;
      residuals += difference * difference;
      return __builtin_convertvector(__builtin_convertvector(rounded, Ints), Values);
    }
  };
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    Quad values;
    std::memcpy(&values, vector + i, sizeof values);
    const Values rounded = round_four(values);
    std::memcpy(out + i, &rounded, sizeof rounded);
  }
  if (i < n) {
    Quad values = {};
    for (std::size_t j = 0; i + j < n; ++j) values[j] = vector[i + j];
    const Values rounded = round_four(values);
    std::memcpy(out + i, &rounded, ((n + kPerStep - 1) / kPerStep * kPerStep - i) * sizeof(Value));
  }
  // 1e-9 of the norm covers every float64 rounding on the way here, for up to a million dimensions; |P| <= |vector|/a + |E|.
  const double exact_norm = norm * inverse;
  const double residual = std::sqrt((residuals[0] + residuals[1]) + (residuals[2] + residuals[3])) + 1e-9 * (exact_norm + 1.0);
  return {scale, (exact_norm + residual) * (1.0 + 1e-9), residual};
}

inline Quantized quantize(Format format, std::size_t n, const double* vector, double norm, double least_scale, std::byte* out) {
  // |P| is held near kInt16Norm, so that products of two such vectors, and every partial sum, fit int32 with room for a bound.
  constexpr double kInt16Norm = 45000.0;
  const auto at_least = [](double a, double b) { return a > b ? a : b; };
  switch (format) {
    case Format::kFloat32:
      return round_to(n, vector, norm, at_least(norm, least_scale), reinterpret_cast<float*>(out));
    case Format::kInt16: {
      const double scale = at_least(norm / kInt16Norm, largest_magnitude(n, vector) / 32767.0);
      return round_to(n, vector, norm, at_least(scale, least_scale), reinterpret_cast<std::int16_t*>(out));
    }
    case Format::kInt8: {
      const double scale = largest_magnitude(n, vector) / 127.0;
      return round_to(n, vector, norm, at_least(scale, least_scale), reinterpret_cast<std::int8_t*>(out));
    }
  }
  return {};
}

// [vector][step] to [step][vector].
inline void interleave(std::size_t vectors, std::size_t steps, const std::uint32_t* from, std::uint32_t* to) {
  if (vectors == kGroup) {
    for (std::size_t step = 0; step < steps; ++step) {
      for (std::size_t v = 0; v < kGroup; ++v) to[step * kGroup + v] = from[v * steps + step];
    }
    return;
  }
  for (std::size_t step = 0; step < steps; ++step) {
    for (std::size_t v = 0; v < vectors; ++v) to[step * vectors + v] = from[v * steps + step];
  }
}

struct Int16Format {
  using Sum = Ops::Int;
  using Prepared = Ops::Int;
  static Sum zero() { return Ops::set(0); }
  static Sum init(const QueryBound& bound) { return Ops::set(bound.init.integer); }
  static Prepared rows(const std::byte* p) { return Ops::load(p); }
  static Sum multiply_add(Sum sum, Prepared rows, const std::byte* query) {
    return Ops::multiply_add16(sum, rows, reinterpret_cast<const std::int32_t*>(query));
  }
  static Sum load(const std::byte* p) { return Ops::load(p); }
  static void store(std::byte* p, Sum sum) { Ops::store(p, sum); }
  static Ops::Float real(Sum sum) { return Ops::convert(sum); }
};

struct Int8Format : Int16Format {
  using Prepared = Ops::Rows8;
  static Prepared rows(const std::byte* p) { return Ops::prepare8(Ops::load(p)); }
  static Sum multiply_add(Sum sum, Prepared rows, const std::byte* query) {
    return Ops::multiply_add8(sum, rows, reinterpret_cast<const std::int32_t*>(query));
  }
};

struct Float32Format {
  using Sum = Ops::Float;
  using Prepared = Ops::Float;
  static Sum zero() { return Ops::setf(0.0f); }
  static Sum init(const QueryBound& bound) { return Ops::setf(bound.init.real); }
  static Prepared rows(const std::byte* p) { return Ops::loadf(p); }
  static Sum multiply_add(Sum sum, Prepared rows, const std::byte* query) {
    float value;
    std::memcpy(&value, query, 4);
    return Ops::multiply_add(sum, rows, Ops::setf(value));
  }
  static Sum load(const std::byte* p) { return Ops::loadf(p); }
  static void store(std::byte* p, Sum sum) { Ops::storef(p, sum); }
  static Ops::Float real(Sum sum) { return sum; }
};

inline constexpr std::size_t kVecBytes = kGroup * 4 / Ops::kVecs;

// Calls each(q, v) for every query of a tile and every vector of a row group, with constants: an array that is only indexed by
// constants is kept in registers.
template <std::size_t kQueries, class Each>
IIAE_INLINE void for_each_sum(Each each) {
  [&]<std::size_t... i>(std::index_sequence<i...>) IIAE_INLINE_LAMBDA {
    (each(std::integral_constant<std::size_t, i / Ops::kVecs>(), std::integral_constant<std::size_t, i % Ops::kVecs>()), ...);
  }(std::make_index_sequence<kQueries * Ops::kVecs>());
}

// Appends the rows in `mask` of a group that starts at row `first`, with their sums.
template <class Vectors = Ops>
inline void append_hits(Hits& hits, std::uint32_t first, std::uint32_t mask, const std::byte* sums) {
  if constexpr (requires { Vectors::append(hits, first, mask, sums); }) {
    Vectors::append(hits, first, mask, sums);
  } else {
    for (; mask != 0; mask &= mask - 1) {
      const auto row = static_cast<std::uint32_t>(std::countr_zero(mask));
      hits.rows[hits.count] = first + row;
      std::memcpy(hits.sums + hits.count, sums + row * 4, 4);
      ++hits.count;
    }
  }
}

// Steps [begin, end) of one 16-row group and kQueries queries. Sums stay in registers within a block of dimensions, and in
// task.scratch between blocks; the first block starts them from the bounds, the last one compares them with the bounds.
template <class F, std::size_t kQueries, bool kFirst, bool kLast>
inline void scan_tile(const ScanTask& task, std::size_t group, std::size_t first_query, std::size_t begin, std::size_t end) {
  constexpr std::size_t kWidth = kGroup / Ops::kVecs;
  const std::byte* rows = task.strip->data.get() + (group * task.steps + begin) * kGroup * 4;
  const std::byte* queries = task.queries + (first_query * task.steps + begin * kQueries) * 4;
  const QueryBound* bounds = task.bounds + first_query;
  std::byte* const sums = task.scratch + first_query * kGroup * 4;
  const auto place = [&](std::size_t q, std::size_t v) { return sums + q * kGroup * 4 + v * kVecBytes; };
  typename F::Sum sum[kQueries][Ops::kVecs];
  for_each_sum<kQueries>([&](auto q, auto v) IIAE_INLINE_LAMBDA { sum[q][v] = kFirst ? F::init(bounds[q]) : F::zero(); });
  for (std::size_t step = begin; step < end; ++step) {
    typename F::Prepared prepared[Ops::kVecs];
    for_each_sum<1>([&](auto, auto v) IIAE_INLINE_LAMBDA { prepared[v] = F::rows(rows + v * kVecBytes); });
    for_each_sum<kQueries>([&](auto q, auto v)
                               IIAE_INLINE_LAMBDA { sum[q][v] = F::multiply_add(sum[q][v], prepared[v], queries + q * 4); });
    rows += kGroup * 4;
    queries += kQueries * 4;
  }
  if constexpr (!kFirst) {
    for_each_sum<kQueries>([&](auto q, auto v) IIAE_INLINE_LAMBDA { sum[q][v] = Ops::add(F::load(place(q, v)), sum[q][v]); });
  }
  std::uint32_t passed[kQueries] = {};
  if constexpr (kLast) {
    const float* inverse = task.strip->inverse_scale.data() + group * kGroup;
    const float* threshold = task.strip->threshold.data() + group * kGroup;
    std::uint32_t queries_hit = 0;
    for_each_sum<kQueries>([&](auto q, auto v) IIAE_INLINE_LAMBDA {
      const auto scaled = Ops::multiply(Ops::setf(bounds[q].a), Ops::loadf(inverse + v * kWidth));
      const auto least = Ops::multiply_add(scaled, Ops::setf(bounds[q].b), Ops::loadf(threshold + v * kWidth));
      const std::uint32_t kept = ~Ops::below(F::real(sum[q][v]), least) & ((1u << kWidth) - 1u);
      passed[q] |= kept << (v * kWidth);
      queries_hit |= static_cast<std::uint32_t>(kept != 0) << q;
    });
    if (queries_hit == 0) return;
    for_each_sum<kQueries>([&](auto q, auto v) IIAE_INLINE_LAMBDA { F::store(place(q, v), sum[q][v]); });
    for (; queries_hit != 0; queries_hit &= queries_hit - 1) {
      const auto q = static_cast<std::size_t>(std::countr_zero(queries_hit));
      append_hits(task.hits[first_query + q], static_cast<std::uint32_t>(group * kGroup), passed[q], place(q, 0));
    }
  } else {
    for_each_sum<kQueries>([&](auto q, auto v) IIAE_INLINE_LAMBDA { F::store(place(q, v), sum[q][v]); });
  }
}

// All tiles of the batch in turn; what is left over goes into narrower ones.
template <class Tile>
inline void for_each_tile(std::size_t query_count, Tile tile) {
  std::size_t query = 0;
  for (; query + Ops::kTile <= query_count; query += Ops::kTile) tile.template operator()<Ops::kTile>(query);
  for (; query + Ops::kTile / 2 <= query_count; query += Ops::kTile / 2) tile.template operator()<Ops::kTile / 2>(query);
  for (; query < query_count; ++query) tile.template operator()<1>(query);
}

template <class F>
inline void scan_format(const ScanTask& task) {
  if (task.steps <= kStepsPerBlock) {
    // A tile of queries stays in the first-level cache while the strip passes.
    for_each_tile(task.query_count, [&]<std::size_t kQueries>(std::size_t query) {
      for (std::size_t group = task.first_group; group < task.last_group; ++group) {
        scan_tile<F, kQueries, true, true>(task, group, query, 0, task.steps);
      }
    });
    return;
  }
  for (std::size_t group = task.first_group; group < task.last_group; ++group) {
    for (std::size_t begin = 0; begin < task.steps; begin += kStepsPerBlock) {
      const bool last = begin + kStepsPerBlock >= task.steps;
      const std::size_t end = last ? task.steps : begin + kStepsPerBlock;
      for_each_tile(task.query_count, [&]<std::size_t kQueries>(std::size_t query) {
        if (begin == 0) {
          scan_tile<F, kQueries, true, false>(task, group, query, begin, end);
        } else if (last) {
          scan_tile<F, kQueries, false, true>(task, group, query, begin, end);
        } else {
          scan_tile<F, kQueries, false, false>(task, group, query, begin, end);
        }
      });
    }
  }
}

inline void scan(const ScanTask& task) {
  switch (task.format) {
    case Format::kFloat32:
      return scan_format<Float32Format>(task);
    case Format::kInt16:
      return scan_format<Int16Format>(task);
    case Format::kInt8:
      return scan_format<Int8Format>(task);
  }
}

inline constexpr Kernels make_kernels(const char* name, bool fast_int8) {
  return {name,   Ops::kTile, Ops::kBias8, fast_int8,   &load_row, &distance, &distance_to_row,
          &check, &centre,    &quantize,   &interleave, &scan};
}
