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
};
