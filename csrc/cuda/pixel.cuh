#pragma once
// The values of a pixel that losses read besides the logits: label, weight and mask, and for
// upsample_backward the incoming gradient.
#include "common.cuh"

namespace udas {
namespace cuda {

// Label, weight and mask of a pixel as loaded, so that the next pixel's loads can be in flight while this one
// is worked on.
struct Sides {
  int64_t label;
  float weight;
  bool masked_in;
};

// The gradient of upsample's result at a pixel, by class.
struct Incoming {
  UDAS_DEVICE float operator[](int c) const { return __ldg(first + c * pitch); }
  const float* first;
  int64_t pitch;
};

// The same as used.
struct Pixel {
  int label;  // -1: ignored
  float weight, count;
  bool active;  // false: neither loss nor gradient
  Incoming incoming;
};

// `at` is the pixel's place in [N, H, W].
template <class Loss>
UDAS_DEVICE Sides load_sides(const LossTask& task, int64_t at) {
  Sides sides{task.ignore_index, 1.0f, true};
  if (Loss::kLabels && task.target.data != nullptr) sides.label = load_label(task.target, at);
  if (task.pixel_weight != nullptr) sides.weight = __ldg(task.pixel_weight + at);
  if (Loss::kTeachers && task.mask != nullptr) sides.masked_in = load_flag(task.mask, at);
  return sides;
}

// A label that is neither a class nor ignored reads nothing: its pixel counts as NaN.
template <class Loss>
UDAS_DEVICE Pixel resolve(const LossTask& task, const Sides& sides) {
  Pixel pixel{-1, sides.weight, 1.0f, sides.masked_in, {}};
  if (Loss::kLabels && sides.label != task.ignore_index) {
    const bool known = sides.label >= 0 && sides.label < task.classes;
    pixel.label = known ? static_cast<int>(sides.label) : 0;
    if (!known) pixel.weight = pixel.count = NAN;
  }
  if (Loss::kCountsLabels) {
    pixel.active = pixel.label >= 0;
    if (pixel.active && task.class_weight != nullptr) {
      const float weight = __ldg(task.class_weight + pixel.label);
      pixel.count *= weight;
      pixel.weight *= weight;
    }
  }
  if (!pixel.active) pixel.count = 0.0f;
  return pixel;
}

}  // namespace cuda
}  // namespace udas
