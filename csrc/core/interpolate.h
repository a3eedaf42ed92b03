#pragma once
// Source positions of bilinear interpolation on one axis, as in torch.nn.functional.interpolate.
#include <cstdint>

#include "config.h"

namespace udas {

// value = (1 - fraction) · at[low] + fraction · at[high]; low == high at the end of the axis.
struct Source {
  int32_t low, high;
  float fraction;
};

// Source of position `i` of `out` on an axis of length `in`. It is a ratio of integers, so that the fraction
// is the nearest float for any size: (2i + 1)·in / (2·out) - 1/2, or i·(in - 1) / (out - 1) with aligned
// corners.
UDAS_HD Source source(int64_t i, int64_t in, int64_t out, bool align_corners) {
  int64_t top, bottom;
  if (align_corners) {
    top = i * (in - 1);
    bottom = out > 1 ? out - 1 : 1;
  } else {
    top = (2 * i + 1) * in - out;
    top = top < 0 ? 0 : top;
    bottom = 2 * out;
  }
  const int64_t low = top / bottom;
  Source s;
  s.low = static_cast<int32_t>(low);
  s.high = static_cast<int32_t>(low + (low < in - 1 ? 1 : 0));
  s.fraction = static_cast<float>(top - low * bottom) / static_cast<float>(bottom);
  return s;
}

// The first position of `out` whose `low` is at least `row`: [first(row - 1), first(row + 1)) are the
// positions that touch `row`, the range a gradient gathers over. Ends at `out`.
UDAS_HD int64_t first_position(int64_t row, int64_t in, int64_t out, bool align_corners) {
  if (row <= 0) return 0;
  if (row >= in || (align_corners && out == 1)) return out;
  if (align_corners) {
    const int64_t step = in - 1;
    const int64_t i = (row * (out - 1) + step - 1) / step;  // smallest i with i·(in - 1) >= row·(out - 1)
    return i < out ? i : out;
  }
  const int64_t need = 2 * out * row + out;  // (2i + 1)·in >= need
  const int64_t i = ((need + in - 1) / in) / 2;
  return i < out ? i : out;
}

}  // namespace udas
