#include "convolution/convolution.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>

#include "convolution/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace iiae::convolution {

namespace {

// Bytes of operands that are made ready at once: half of a second-level cache of today, weights have the other half.
constexpr std::size_t kScratchBytes = 256 << 10;
constexpr std::size_t kSumBytes = 512 << 10;  // the same for a gradient's sums

std::vector<const Kernels*> detect() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") &&
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back(&avx512_bf16::kKernels);
  }
#endif
  found.push_back(&scalar::kKernels);
  return found;
}

const std::vector<const Kernels*>& supported() {
  static const std::vector<const Kernels*> found = detect();
  return found;
}

std::atomic<const Kernels*> selected{nullptr};

const Kernels& kernels() {
  const Kernels* current = selected.load();
  return current ? *current : *supported().front();
}

// Memory that a thread keeps from call to call; what is in it is lost when it grows.
template <class Value>
class Scratch {
 public:
  Value* get(std::size_t count) {
    if (count > count_) {
      data_.reset();
      count_ = 0;  // in case there is no memory
      data_.reset(static_cast<Value*>(::operator new(count * sizeof(Value), std::align_val_t{64})));
      count_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(Value* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<Value, Free> data_;
  std::size_t count_ = 0;
};

// Rows of one image of the small map, and the part of the large map that they meet.
struct Piece {
  std::size_t image, first, count;
};

// All rows of a batch in pieces of equal size, but for the last of an image.
class Pieces {
 public:
  Pieces(const Shape& shape, std::size_t bytes_of_row) : height_(shape.height) {
    const std::size_t fitting = std::clamp<std::size_t>(kScratchBytes / bytes_of_row, 1, height_);
    each_ = (height_ + fitting - 1) / fitting;
    rows_ = (height_ + each_ - 1) / each_;
    each_ = (height_ + rows_ - 1) / rows_;
    count_ = shape.batch * each_;
  }
  std::size_t count() const { return count_; }
  std::size_t rows() const { return rows_; }
  Piece operator[](std::size_t i) const {
    const std::size_t first = i % each_ * rows_;
    return {i / each_, first, std::min(rows_, height_ - first)};
  }

 private:
  std::size_t height_, rows_, each_, count_;
};

// An image's rows of pixels, of all its channels or of some.
struct Image {
  const Bf16* data;  // of the first channel wanted
  std::size_t height, width;
  std::size_t all;       // channels
  std::size_t channels;  // of them wanted
};

// Copies `count` rows from row `first` on, which may lie outside of the image, with a pixel of zeros at both sides.
void copy_padded(const Image& image, std::ptrdiff_t first, std::size_t count, Bf16* out) {
  const std::size_t inner = image.width * image.channels;
  for (std::size_t i = 0; i < count; ++i, out += inner + 2 * image.channels) {
    const std::ptrdiff_t row = first + static_cast<std::ptrdiff_t>(i);
    if (row < 0 || row >= static_cast<std::ptrdiff_t>(image.height)) {
      std::memset(out, 0, (inner + 2 * image.channels) * sizeof(Bf16));
      continue;
    }
    const Bf16* from = image.data + static_cast<std::size_t>(row) * image.width * image.all;
    Bf16* to = out + image.channels;
    std::memset(out, 0, image.channels * sizeof(Bf16));
    if (image.channels == image.all) {
      std::memcpy(to, from, inner * sizeof(Bf16));
    } else {
      for (std::size_t x = 0; x < image.width; ++x) {
        std::memcpy(to + x * image.channels, from + x * image.all, image.channels * sizeof(Bf16));
      }
    }
    std::memset(to + inner, 0, image.channels * sizeof(Bf16));
  }
}

// Numbers of a packed weight: `rows` rows of `length` numbers for each of `channels` channels.
std::size_t packed_size(std::size_t rows, std::size_t length, std::size_t channels) {
  return rows * (length / 2) * padded(channels);
}

// Packs a weight as Product::weight wants it. `place(row, l, part)` is where the number for a part's first channel is, or null
// for zeros; the other channels follow at a distance of `stride`. More than one part fits into one vector.
template <class Place>
void pack_weight(const Team& team, std::size_t rows, std::size_t length, std::size_t parts, std::size_t channels,
                 std::size_t stride, Pair* out, const Place& place) {
  const Kernels& table = kernels();
  const std::size_t pairs = length / 2, all = padded(parts * channels), blocks = (all + kBlock - 1) / kBlock;
  run(team, blocks * rows, [&](std::size_t task) {
    const std::size_t row = task % rows, first = task / rows * kBlock, lanes = std::min(kBlock, all - first);
    Pair* to = out + first * rows * pairs + row * pairs * lanes;
    for (std::size_t l = 0; l < length; l += 2, to += lanes) {
      if (parts > 1) {
        Pair found[2 * kLanes];
        for (std::size_t part = 0; part < parts; ++part) {
          table.pack(place(row, l, part), place(row, l + 1, part), stride, channels, found + part * channels);
        }
        std::memcpy(to, found, kLanes * sizeof(Pair));
        continue;
      }
      const float* one = place(row, l, 0) + first * stride;
      const float* other = place(row, l + 1, 0) + first * stride;
      for (std::size_t lane = 0; lane < lanes; lane += kLanes) {
        table.pack(one + lane * stride, other + lane * stride, stride, std::min(kLanes, channels - first - lane), to + lane);
      }
    }
  });
}

// The same for a weight whose rows' numbers are neighbours in memory, as in a convolution's weight in channels_last order.
void pack_rows(const Team& team, std::size_t rows, std::size_t length, std::size_t channels, const Kernel<const float>& weight,
               Pair* out) {
  const std::size_t pairs = length / 2, all = padded(channels), blocks = (all + kBlock - 1) / kBlock;
  run(team, blocks * rows, [&](std::size_t task) {
    const std::size_t row = task % rows, first = task / rows * kBlock, lanes = std::min(kBlock, all - first);
    Pair* to = out + first * rows * pairs + row * pairs * lanes;
    for (std::size_t lane = 0; lane < lanes; lane += kLanes) {
      const std::size_t channel = first + lane;
      kernels().pack_rows(&weight.at(channel, 0, row, 0), weight.small, std::min(kLanes, channels - channel), pairs, to + lane,
                          lanes);
    }
  });
}

// A bias for each channel of each of `parts` parts, and zeros up to a whole vector.
const float* pad_bias(const float* bias, std::size_t channels, std::size_t parts, Scratch<float>& scratch) {
  float* out = scratch.get(padded(channels * parts));
  std::fill_n(out, padded(channels * parts), 0.0f);
  for (std::size_t part = 0; bias && part < parts; ++part) std::copy_n(bias, channels, out + part * channels);
  return out;
}

thread_local Scratch<Pair> weight_scratch;
thread_local Scratch<float> bias_scratch;
thread_local Scratch<Bf16> map_scratch;

}  // namespace

void down(const Shape& shape, const Bf16* large_map, const Kernel<const float>& weight, const float* bias, Bf16* out,
          const Team& team) {
  const std::size_t large = shape.large, small = shape.small, length = 4 * large;
  Pair* packed = weight_scratch.get(packed_size(4, length, small));
  if (weight.large == 1 && weight.column == large) {
    pack_rows(team, 4, length, small, weight, packed);
  } else {
    pack_weight(team, 4, length, 1, small, weight.small, packed,
                [&](std::size_t row, std::size_t l, std::size_t) { return &weight.at(0, l % large, row, l / large); });
  }
  const float* padded_bias = pad_bias(bias, small, 1, bias_scratch);
  const std::size_t row = (2 * shape.width + 2) * large;
  const Pieces pieces(shape, 2 * row * sizeof(Bf16));
  run(team, pieces.count(), [&](std::size_t i) {
    const Piece piece = pieces[i];
    Bf16* in = map_scratch.get((2 * pieces.rows() + 2) * row);
    const Bf16* image = large_map + piece.image * 4 * shape.height * shape.width * large;
    copy_padded({image, 2 * shape.height, 2 * shape.width, large, large}, 2 * static_cast<std::ptrdiff_t>(piece.first) - 1,
                2 * piece.count + 2, in);
    const std::size_t out_row = shape.width * small;
    Bf16* to = out + (piece.image * shape.height + piece.first) * out_row;
    kernels().multiply({.in = in,
                        .row = row,
                        .pixel = 2 * large,
                        .step = 2,
                        .rows = 4,
                        .pairs = length / 2,
                        .height = piece.count,
                        .width = shape.width,
                        .weight = packed,
                        .bias = padded_bias,
                        .channels = small,
                        .out = to,
                        .out_row = out_row,
                        .out_pixel = small,
                        .parts = 1});
  });
}

// Pixel (2y + a, 2x + c) of the large map takes the pixels in rows y - 1 + a and y + a, columns x - 1 + c and x + c of the
// small one: a product of its own for each a and c. Where four pixels' channels fit into one vector, one product makes all four
// from three rows and columns, with zeros in the weight.
void up(const Shape& shape, const Bf16* small_map, const Kernel<const float>& weight, const float* bias, Bf16* out,
        const Team& team) {
  const std::size_t large = shape.large, small = shape.small;
  const bool together = 4 * large <= kLanes && small % 2 == 0;
  const std::size_t taps = together ? 3 : 2, length = taps * small, channels = together ? 4 * large : large;
  const std::size_t size = packed_size(taps, length, channels);
  Pair* packed = weight_scratch.get(together ? size : 4 * size);
  if (together) {
    pack_weight(team, taps, length, 4, large, weight.large, packed, [&](std::size_t row, std::size_t l, std::size_t part) {
      const std::size_t y = 3 + part / 2 - 2 * row, x = 3 + part % 2 - 2 * (l / small);
      return y < 4 && x < 4 ? &weight.at(l % small, 0, y, x) : nullptr;  // below zero is above three
    });
  } else {
    for (std::size_t phase = 0; phase < 4; ++phase) {
      pack_weight(team, taps, length, 1, large, weight.large, packed + phase * size,
                  [&](std::size_t row, std::size_t l, std::size_t) {
                    return &weight.at(l % small, 0, 3 - phase / 2 - 2 * row, 3 - phase % 2 - 2 * (l / small));
                  });
    }
  }
  const float* padded_bias = pad_bias(bias, large, together ? 4 : 1, bias_scratch);
  const std::size_t row = (shape.width + 2) * small;
  const Pieces pieces(shape, row * sizeof(Bf16));
  run(team, pieces.count(), [&](std::size_t i) {
    const Piece piece = pieces[i];
    Bf16* in = map_scratch.get((pieces.rows() + 2) * row);
    const Bf16* image = small_map + piece.image * shape.height * shape.width * small;
    copy_padded({image, shape.height, shape.width, small, small}, static_cast<std::ptrdiff_t>(piece.first) - 1, piece.count + 2,
                in);
    const std::size_t out_row = 2 * shape.width * large;
    Bf16* to = out + (piece.image * 2 * shape.height + 2 * piece.first) * out_row;
    for (std::size_t phase = 0; phase < (together ? 1 : 4); ++phase) {
      const std::size_t a = phase / 2, c = phase % 2;
      kernels().multiply({.in = in + a * row + c * small,
                          .row = row,
                          .pixel = small,
                          .step = 1,
                          .rows = taps,
                          .pairs = length / 2,
                          .height = piece.count,
                          .width = shape.width,
                          .weight = packed + phase * size,
                          .bias = padded_bias,
                          .channels = channels,
                          .out = to + a * out_row + c * large,
                          .out_row = 2 * out_row,
                          .out_pixel = 2 * large,
                          .parts = together ? 2u : 1u});
    }
  });
}

namespace {

thread_local Scratch<Pair> large_scratch, small_scratch;
thread_local Scratch<float> sum_scratch, total_scratch;

// How the sum over all pixels is divided: each task takes some of the large map's channels, so that its sums stay in the
// second-level cache, and a share of the pieces.
struct Division {
  std::size_t width;   // channels of a task; fewer in the last
  std::size_t blocks;  // of channels
  std::size_t shares;  // of pieces

  Division(const Shape& shape, const Team& team, std::size_t pieces) {
    const std::size_t fitting = kSumBytes / (16 * padded(shape.small) * sizeof(float));
    const std::size_t even = padded((shape.large + team.threads - 1) / std::max(team.threads, 1u));
    width = std::min({std::max<std::size_t>(fitting / 16 * 16, 16), even, shape.large});
    blocks = (shape.large + width - 1) / width;
    shares = std::clamp<std::size_t>((team.threads + blocks - 1) / blocks, 1, pieces);
  }
};

// Adds up the gradient for channels [channel, channel + width) of the large map over pieces [first, last).
void add_share(const Shape& shape, const Bf16* small_map, const Bf16* large_map, const Pieces& pieces, std::size_t first,
               std::size_t last, std::size_t channel, std::size_t width, std::size_t together, float* sums) {
  const std::size_t channels = padded(shape.small), large_row = 2 * shape.width * width, across = shape.width / 2;
  const std::size_t plane = (pieces.rows() + 1) * large_row, small_size = pieces.rows() * across * channels;
  Pair* large = large_scratch.get(together * 2 * plane);
  Pair* small = small_scratch.get(together * small_size);
  Bf16* padded_rows = map_scratch.get((2 * pieces.rows() + 2) * (large_row + 2 * width));
  const Kernels& table = kernels();
  std::memset(sums, 0, 16 * width * channels * sizeof(float));
  std::memset(small, 0, together * small_size * sizeof(Pair));  // the channels that fill up a vector stay zero
  for (std::size_t begin = first; begin < last; begin += together) {
    const std::size_t count = std::min(together, last - begin);
    for (std::size_t p = 0; p < count; ++p) {
      const Piece piece = pieces[begin + p];
      const Bf16* image = large_map + piece.image * 4 * shape.height * shape.width * shape.large + channel;
      copy_padded({image, 2 * shape.height, 2 * shape.width, shape.large, width},
                  2 * static_cast<std::ptrdiff_t>(piece.first) - 1, 2 * piece.count + 2, padded_rows);
      for (std::size_t r = 0; r < 2 * pieces.rows() + 2; ++r) {
        Pair* to = large + (2 * p + r % 2) * plane + r / 2 * large_row;
        if (r < 2 * piece.count + 2) {
          const Bf16* row = padded_rows + r * (large_row + 2 * width);
          table.pair(row, row + 2 * width, to, large_row);
        } else {
          std::memset(to, 0, large_row * sizeof(Pair));
        }
      }
      const Bf16* from = small_map + (piece.image * shape.height + piece.first) * shape.width * shape.small;
      Pair* to = small + p * small_size;
      for (std::size_t t = 0; t < pieces.rows() * across; ++t) {
        if (t < piece.count * across) {
          table.pair(from + 2 * t * shape.small, from + (2 * t + 1) * shape.small, to + t * channels, shape.small);
        } else {
          std::memset(to + t * channels, 0, shape.small * sizeof(Pair));
        }
      }
    }
    table.add_gradient({.large = large,
                        .small = small,
                        .pieces = count,
                        .steps = pieces.rows() * across,
                        .plane_row = across,
                        .kernel_row = 4 * width,
                        .channels = channels,
                        .sums = sums});
  }
}

}  // namespace

void weight_gradient(const Shape& shape, const Bf16* small_map, const Bf16* large_map, const Kernel<float>& out,
                     const Team& team) {
  const std::size_t channels = padded(shape.small), small_blocks = (channels + kBlock - 1) / kBlock;
  const std::size_t width = Division(shape, team, 1).width;
  const std::size_t piece_row = (4 * shape.width * width + shape.width / 2 * channels) * sizeof(Pair);
  const Pieces pieces(shape, piece_row);
  const Division division(shape, team, pieces.count());
  const std::size_t together = std::max<std::size_t>(1, kScratchBytes / (piece_row * pieces.rows()));
  const std::size_t size = 16 * width * channels, shares = division.shares;

  // Writes the sum of all shares for a block of large channels, a block of small ones and a place in the kernel.
  const auto write = [&](const float* sums, std::size_t block, std::size_t small_block, std::size_t place) {
    const std::size_t channel = block * width, count = std::min(width, shape.large - channel);
    const std::size_t first = small_block * kBlock, lanes = std::min(kBlock, channels - first);
    const float* from = sums + first * 16 * count + place * count * lanes;
    constexpr std::size_t kTile = 16;  // numbers that are read together, so that they stay in the nearest cache
    for (std::size_t begin = 0; begin < count; begin += kTile) {
      for (std::size_t lane = 0; lane < lanes && first + lane < shape.small; ++lane) {
        for (std::size_t l = begin; l < std::min(begin + kTile, count); ++l) {
          float sum = 0.0f;
          for (std::size_t share = 0; share < shares; ++share) sum += from[share * size + l * lanes + lane];
          out.at(first + lane, channel + l, place / 4, place % 4) = sum;
        }
      }
    }
  };

  float* shared = shares > 1 ? sum_scratch.get(division.blocks * shares * size) : nullptr;
  run(team, division.blocks * shares, [&](std::size_t task) {
    const std::size_t block = task / shares, channel = block * width, share = task % shares;
    float* sums = shared ? shared + task * size : sum_scratch.get(size);
    add_share(shape, small_map, large_map, pieces, pieces.count() * share / shares, pieces.count() * (share + 1) / shares,
              channel, std::min(width, shape.large - channel), together, sums);
    for (std::size_t i = 0; !shared && i < 16 * small_blocks; ++i) write(sums, block, i / 16, i % 16);
  });
  if (!shared) return;
  run(team, division.blocks * small_blocks * 16, [&](std::size_t task) {
    const std::size_t block = task / 16 / small_blocks;
    write(shared + block * shares * size, block, task / 16 % small_blocks, task % 16);
  });
}

void channel_sums(const Bf16* map, std::size_t pixels, std::size_t channels, float* out, const Team& team) {
  // Neighbouring pixels are added up apart, so that whole vectors are added whatever the number of channels, and in fp32 only
  // so many of them that the rest can be added up in fp64.
  constexpr std::size_t kRows = 64;
  std::size_t together = std::max<std::size_t>(1, 2048 / channels);
  while (pixels % together != 0) --together;
  const std::size_t width = together * channels, rows = pixels / together;
  const std::size_t shares = std::min<std::size_t>(std::max(team.threads, 1u), rows);
  std::vector<double> totals(shares * channels);
  run(team, shares, [&](std::size_t share) {
    float* sums = total_scratch.get(width);
    for (std::size_t first = rows * share / shares, last = rows * (share + 1) / shares; first < last; first += kRows) {
      std::fill_n(sums, width, 0.0f);
      for (std::size_t row = first; row < std::min(first + kRows, last); ++row) kernels().add(map + row * width, sums, width);
      for (std::size_t i = 0; i < width; i += channels) {
        for (std::size_t c = 0; c < channels; ++c) totals[share * channels + c] += static_cast<double>(sums[i + c]);
      }
    }
  });
  for (std::size_t c = 0; c < channels; ++c) {
    double sum = 0.0;
    for (std::size_t share = 0; share < shares; ++share) sum += totals[share * channels + c];
    out[c] = static_cast<float>(sum);
  }
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* one : supported()) names.emplace_back(one->name);
  return names;
}

void select_instruction_set(const std::string& name) {
  std::string names;
  for (const Kernels* one : supported()) {
    if (one->name == name) {
      selected = one;
      return;
    }
    names += std::string(names.empty() ? "" : ", ") + one->name;
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available here; available are " + names);
}

std::string instruction_set() { return kernels().name; }

bool has_matrix_units() {
#if defined(__x86_64__)
  constexpr unsigned kAmxBf16 = 1u << 22;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmxBf16) != 0;
#else
  return false;
#endif
}

}  // namespace iiae::convolution
