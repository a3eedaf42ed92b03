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
template <class Int>
UDAS_HD Source source_in(Int i, Int in, Int out, bool align_corners) {
  Int top, bottom;
  if (align_corners) {
    top = i * (in - 1);
    bottom = out > 1 ? out - 1 : 1;
  } else {
    top = (2 * i + 1) * in - out;
    top = top < 0 ? 0 : top;
    bottom = 2 * out;
  }
  const Int low = top / bottom;
  Source s;
  s.low = static_cast<int32_t>(low);
  s.high = static_cast<int32_t>(low + (low < in - 1 ? 1 : 0));
  s.fraction = static_cast<float>(top - low * bottom) / static_cast<float>(bottom);
  return s;
}

// The first position of `out` whose `low` is at least `row`: [first(row - 1), first(row + 1)) are the
// positions that touch `row`, the range a gradient gathers over. Ends at `out`.
template <class Int>
UDAS_HD Int first_position_in(Int row, Int in, Int out, bool align_corners) {
  if (row <= 0) return 0;
  if (row >= in || (align_corners && out == 1)) return out;
  // The smallest i with i·(in - 1) >= row·(out - 1), or with (2i + 1)·in >= (2·row + 1)·out.
  const Int need = align_corners ? row * (out - 1) : (2 * row + 1) * out - in;
  const Int step = align_corners ? in - 1 : 2 * in;
  const Int i = (need + step - 1) / step;
  return i < out ? i : out;
}

// Whether 32 bits hold all that source and first_position compute. GPUs divide 64 bits in software.
UDAS_HD bool is_short(int64_t in, int64_t out) { return in * out < int64_t{1} << 29; }

UDAS_HD Source source(int64_t i, int64_t in, int64_t out, bool align_corners) {
  return is_short(in, out) ? source_in<int32_t>(i, in, out, align_corners)
                           : source_in<int64_t>(i, in, out, align_corners);
}

UDAS_HD int64_t first_position(int64_t row, int64_t in, int64_t out, bool align_corners) {
  return is_short(in, out) ? first_position_in<int32_t>(row, in, out, align_corners)
                           : first_position_in<int64_t>(row, in, out, align_corners);
}

}  // namespace udas
