// BatchNorm in training mode and the (leaky) ReLU after it, on maps of bf16 on a CPU: two passes over the map forward and two
// backward, in fp32, where PyTorch takes three and four.
//
// A map is (pixels of the whole batch, channels), contiguous. The activation multiplies what is not positive by `slope`.
#pragma once

#include <cstddef>

#include "convolution/convolution.h"
#include "team.h"

namespace iiae::batch_norm {

using convolution::Bf16;

struct Layer {
  std::size_t pixels, channels;  // at least two pixels
  const float *weight, *bias;    // one number for each channel, as everything below that is not a map
  float slope;
};

struct Statistics {
  float *mean, *inverse_deviation;         // of the batch: written by forward, read by backward
  float *running_mean, *running_variance;  // moved towards the batch's, with its unbiased variance
  float momentum, epsilon;
};

void forward(const Layer& layer, const Bf16* x, const Statistics& statistics, Bf16* out, const Team& team);

struct Gradients {
  Bf16* x;
  float *weight, *bias;
};

void backward(const Layer& layer, const Bf16* x, const float* mean, const float* inverse_deviation, const Bf16* gradient,
              const Gradients& out, const Team& team);

}  // namespace iiae::batch_norm
