// The operations that AVX-512 F, BW and VNNI kernels share; the including file adds multiply_add16 and multiply_add8.

struct Base {
  using Int = __m512i;
  using Float = __m512;
  static constexpr std::size_t kVecs = 1;
  static constexpr std::size_t kDoubles = 8;
  static constexpr std::size_t kTile = 12;  // enough independent sums to hide the latency of two units

  static Int load(const void* p) { return _mm512_loadu_si512(p); }
  static Float loadf(const void* p) { return _mm512_loadu_ps(p); }
  static void store(void* p, Int v) { _mm512_storeu_si512(p, v); }
  static void storef(void* p, Float v) { _mm512_storeu_ps(p, v); }
  static Int set(std::int32_t value) { return _mm512_set1_epi32(value); }
  static Float setf(float value) { return _mm512_set1_ps(value); }
  // Written out because GCC otherwise keeps two copies of every sum in the inner loop.
  static Int add(Int sum, Int products) {
    asm("vpaddd %1, %0, %0" : "+v"(sum) : "v"(products));
    return sum;
  }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float multiply_add(Float sum, Float a, Float b) { return _mm512_fmadd_ps(a, b, sum); }
  static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float convert(Int v) { return _mm512_cvtepi32_ps(v); }
  static std::uint32_t below(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  // Compressed in registers: storing compressed vectors is slow on some processors.
  static void append(Hits& hits, std::uint32_t first, std::uint32_t mask, const std::byte* sums) {
    const auto kept = static_cast<__mmask16>(mask);
    const Int lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const Int rows = _mm512_add_epi32(_mm512_set1_epi32(static_cast<std::int32_t>(first)), lanes);
    store(hits.rows + hits.count, _mm512_maskz_compress_epi32(kept, rows));
    store(hits.sums + hits.count, _mm512_maskz_compress_epi32(kept, load(sums)));
    hits.count += static_cast<std::size_t>(std::popcount(mask));
  }
};
