// The kernels, over a type `Ops` that the including file defines: vectors of kLanes floats with the usual operators.
//
//   load(p, n), store(v, p, n)   n floats, or n numbers of bf16, to and from a vector; n is Full or a number below kLanes
//   where_positive(x, a, b)      a where x > 0, b elsewhere

using Vec = typename Ops::Vec;

template <class Each>
IIAE_INLINE void for_each_vector(std::size_t width, Each each) {
  std::size_t i = 0;
  for (; i + kLanes <= width; i += kLanes) each(i, Full{});
  if (i < width) each(i, width - i);
}

// What is left of a value where the activation's input is not positive. Nothing is nothing, whatever the value.
IIAE_INLINE Vec damped(Vec value, float slope) { return slope == 0.0f ? Ops::all(0.0f) : value * Ops::all(slope); }

// What reaches the activation's input of what reaches its output.
template <class Count>
IIAE_INLINE Vec gradient_before(const Affine& affine, Vec x, const Bf16* gradient, std::size_t i, Count n) {
  const Vec after = Ops::load(gradient + i, n);
  const Vec input = x * Ops::load(affine.scale + i, n) + Ops::load(affine.offset + i, n);
  return Ops::where_positive(input, after, damped(after, affine.slope));
}

void moments(const Bf16* x, std::size_t rows, std::size_t width, const float* shift, float* sums, float* squares) {
  for (; rows > 0; --rows, x += width) {
    for_each_vector(width, [&](std::size_t i, auto n) IIAE_INLINE_LAMBDA {
      const Vec value = Ops::load(x + i, n) - Ops::load(shift + i, n);
      Ops::store(Ops::load(sums + i, n) + value, sums + i, n);
      Ops::store(Ops::load(squares + i, n) + value * value, squares + i, n);
    });
  }
}

void activate(const Bf16* x, std::size_t rows, std::size_t width, const Affine& affine, Bf16* out) {
  for (; rows > 0; --rows, x += width, out += width) {
    for_each_vector(width, [&](std::size_t i, auto n) IIAE_INLINE_LAMBDA {
      const Vec value = Ops::load(x + i, n) * Ops::load(affine.scale + i, n) + Ops::load(affine.offset + i, n);
      Ops::store(Ops::where_positive(value, value, damped(value, affine.slope)), out + i, n);
    });
  }
}

void gradient_sums(const Bf16* x, const Bf16* gradient, std::size_t rows, std::size_t width, const Affine& affine,
                   const float* mean, float* sums, float* products) {
  for (; rows > 0; --rows, x += width, gradient += width) {
    for_each_vector(width, [&](std::size_t i, auto n) IIAE_INLINE_LAMBDA {
      const Vec value = Ops::load(x + i, n);
      const Vec h = gradient_before(affine, value, gradient, i, n);
      Ops::store(Ops::load(sums + i, n) + h, sums + i, n);
      Ops::store(Ops::load(products + i, n) + h * (value - Ops::load(mean + i, n)), products + i, n);
    });
  }
}

void gradient(const Bf16* x, const Bf16* gradient, std::size_t rows, std::size_t width, const Affine& affine, const float* of_x,
              const float* constant, Bf16* out) {
  for (; rows > 0; --rows, x += width, gradient += width, out += width) {
    for_each_vector(width, [&](std::size_t i, auto n) IIAE_INLINE_LAMBDA {
      const Vec value = Ops::load(x + i, n);
      const Vec h = gradient_before(affine, value, gradient, i, n);
      Ops::store(h * Ops::load(affine.scale + i, n) + value * Ops::load(of_x + i, n) + Ops::load(constant + i, n), out + i, n);
    });
  }
}
