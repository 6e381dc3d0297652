// The operations that the NEON kernels share; the including file adds multiply_add8.

struct Base {
  using Int = int32x4_t;
  using Float = float32x4_t;
  static constexpr std::size_t kVecs = 4;
  static constexpr std::size_t kTile = 4;  // 16 sums, 4 vectors of rows and a query, of 32 registers
  static constexpr bool kBias8 = false;
  static constexpr std::size_t kDoubles = 4;

  static Int load(const void* p) { return vld1q_s32(static_cast<const std::int32_t*>(p)); }
  static Float loadf(const void* p) { return vld1q_f32(static_cast<const float*>(p)); }
  static void store(void* p, Int v) { vst1q_s32(static_cast<std::int32_t*>(p), v); }
  static void storef(void* p, Float v) { vst1q_f32(static_cast<float*>(p), v); }
  static Int set(std::int32_t value) { return vdupq_n_s32(value); }
  static Float setf(float value) { return vdupq_n_f32(value); }
  static Int multiply_add16(Int sum, Int rows, const std::int32_t* query) {
    const int16x8_t r = vreinterpretq_s16_s32(rows);
    const int16x8_t q = vreinterpretq_s16_s32(set(*query));
    const Int low = vmull_s16(vget_low_s16(r), vget_low_s16(q));
    return vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(r, q)));
  }
  static Int add(Int a, Int b) { return vaddq_s32(a, b); }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float multiply_add(Float sum, Float a, Float b) { return vfmaq_f32(sum, a, b); }
  static Float multiply(Float a, Float b) { return vmulq_f32(a, b); }
  static Float convert(Int v) { return vcvtq_f32_s32(v); }
  static std::uint32_t below(Float a, Float b) {
    const uint32x4_t bits = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcltq_f32(a, b), bits));
  }
};
