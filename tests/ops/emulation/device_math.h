#pragma once
// The special-function unit of a GPU on the host: subnormals are 0, and the last bit is never set.
#include <torch/headeronly/util/Half.h>  // before it can take the compiler for nvcc

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __CUDA_ARCH__ 900
#define UDAS_SPECIAL(name, to, from) to = emulated::special(name, from)

namespace emulated {

inline float flushed(double value) {
  return static_cast<float>(std::fabs(value) < FLT_MIN ? std::copysign(0.0, value) : value);
}

inline float special(const char* name, float x) {
  const double from = flushed(x);
  float to = flushed(name[0] == 'e' ? std::exp2(from) : name[0] == 'l' ? std::log2(from) : 1.0 / from);
  if (!std::isfinite(to)) return to;
  uint32_t raw;
  std::memcpy(&raw, &to, sizeof raw);
  raw &= ~1u;
  std::memcpy(&to, &raw, sizeof raw);
  return to;
}

}  // namespace emulated
