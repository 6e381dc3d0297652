// Adam (Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015) over all parameters at once.
#pragma once

#include <cstddef>
#include <vector>

#include "team.h"

namespace iiae::adam {

// One parameter: `count` numbers of each kind, in the same order of memory, and how many updates there were.
struct Parameter {
  float* values;
  const float* gradient;
  float *mean, *square;  // moments
  float* step;
  std::size_t count;
};

struct Settings {
  double lr, beta1, beta2, epsilon;
};

// Moves moments and values by one update, and adds one to every `step`. All instruction sets give the same bits.
void update(const std::vector<Parameter>& parameters, const Settings& settings, const Team& team);

}  // namespace iiae::adam
