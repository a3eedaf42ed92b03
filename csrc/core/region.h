#pragma once
// Which pixels a region takes, and what a mixed pixel becomes.
#include <cstdint>

#include "config.h"

namespace udas {

enum class Region : int { box, classes, mask };

// Box x0, y0, x1, y1: the right and lower edges are outside. An empty or inverted box takes nothing.
UDAS_HD bool in_box(const int32_t* box, int64_t x, int64_t y) {
  return x >= box[0] && x < box[2] && y >= box[1] && y < box[3];
}

// Per channel, a pixel becomes value · scale + shift: uint8 to [0, 1] where the result is floating, less the
// mean, over the standard deviation.
struct Affine {
  float scale, shift;
};

UDAS_HD Affine affine(double unit, double mean, double std) {
  return {static_cast<float>(1.0 / (unit * std)), static_cast<float>(-mean / std)};
}

}  // namespace udas
