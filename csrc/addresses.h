// Tensors come to the kernels of training as addresses and sizes, since nothing here knows PyTorch; the Python modules that
// call them check the tensors.
#pragma once

#include <cstdint>

#include "team.h"

namespace iiae {

using Address = std::uintptr_t;

template <class Value>
Value* pointer(Address address) {
  return reinterpret_cast<Value*>(address);
}

inline Team team_of(Address parallel, unsigned threads) { return {reinterpret_cast<Parallel>(parallel), threads}; }

}  // namespace iiae
