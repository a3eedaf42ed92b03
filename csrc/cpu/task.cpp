#include "task.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../core/interpolate.h"
#include "isa.h"

namespace udas {
namespace cpu {
namespace {

template <class T>
void widen_row(const Map& map, int64_t n, int64_t y, int64_t begin, int64_t end, float* to) {
  const T* from = static_cast<const T*>(map.data) + n * map.stride[0] + y * map.stride[2];
  for (int64_t c = 0; c < map.classes; ++c, to += map.width) {
    const T* values = from + c * map.stride[1];
    for (int64_t x = begin; x < end; ++x) to[x] = static_cast<float>(values[x * map.stride[3]]);
  }
}

}  // namespace

Axis::Axis(int64_t in, int64_t out, bool align_corners, int64_t padded, bool flipped)
    : low(padded), high(padded), fraction(padded), first(in + 1) {
  for (int64_t i = 0; i < padded; ++i) {
    const int64_t at = std::min(i, out - 1);
    const Source s = source(flipped ? out - 1 - at : at, in, out, align_corners);
    low[i] = s.low;
    high[i] = s.high;
    fraction[i] = s.low == s.high ? 0.0f : s.fraction;
  }
  for (int64_t j = 0; j <= in; ++j)
    first[j] = static_cast<int32_t>(first_position(j, in, out, align_corners));
}

void load_row(const Map& map, int64_t n, int64_t y, int64_t begin, int64_t end, float* to) {
  switch (map.type) {
    case Type::float16:
      return widen_row<torch::headeronly::Half>(map, n, y, begin, end, to);
    case Type::bfloat16:
      return widen_row<torch::headeronly::BFloat16>(map, n, y, begin, end, to);
    default:
      return widen_row<float>(map, n, y, begin, end, to);
  }
}

// Defined in baseline.cpp, avx2.cpp and avx512.cpp.
extern const Kernels baseline_kernels;
#ifdef UDAS_X86_ISAS
extern const Kernels avx2_kernels, avx512_kernels;
#endif

const Kernels& kernels() {
#ifdef UDAS_X86_ISAS
  if (isa() == Isa::avx512) return avx512_kernels;
  if (isa() == Isa::avx2) return avx2_kernels;
#endif
  return baseline_kernels;
}

}  // namespace cpu
}  // namespace udas
