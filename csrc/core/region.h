#pragma once
// Regions of region_mix, and the normalisation of a mixed pixel.
#include <cstdint>

#include "config.h"

namespace udas {

enum class Region : int { box, classes, mask };

// Whether a pixel is in box x0, y0, x1, y1: x1 and y1 are outside. An empty or inverted box has no pixel.
UDAS_HD bool in_box(const int32_t* box, int32_t x, int32_t y) {
  return x >= box[0] && x < box[2] && y >= box[1] && y < box[3];
}

// Normalisation of one channel as value · scale + shift: uint8 to [0, 1] where the result is floating, minus
// the mean, divided by the standard deviation.
struct Affine {
  float scale, shift;
};

UDAS_HD Affine affine(double unit, double mean, double std) {
  return {static_cast<float>(1.0 / (unit * std)), static_cast<float>(-mean / std)};
}

}  // namespace udas
