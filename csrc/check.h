#pragma once
// Checks that the kernels' memory safety rests on, for callers of torch.ops. The Python faces say the same
// earlier and in full sentences.
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "core/activation.h"

namespace udas {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxClasses = 256;
constexpr int64_t kMaxViews = 16;
enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i > 0 ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

// [N, C, h, w] with 2 to 256 classes, float32, float16 or bfloat16.
inline void check_logits(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(
      t.dim() == 4 && t.size(1) >= 2 && t.size(1) <= kMaxClasses && t.size(2) > 0 && t.size(3) > 0, name,
      ": found shape ", shape_of(t), ", expected [N, C, h, w] with C from 2 to ", kMaxClasses);
  const ScalarType type = t.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16, name,
                  ": found ", torch::headeronly::toString(type), ", expected float32, float16 or bfloat16");
}

// As `like`: the same samples and classes on the same device, any h and w, any of the three dtypes.
inline void check_like(const char* name, const Tensor& t, const Tensor& like) {
  check_logits(name, t);
  STD_TORCH_CHECK(t.size(0) == like.size(0) && t.size(1) == like.size(1), name, ": found shape ", shape_of(t),
                  ", expected the samples and classes of ", shape_of(like));
  STD_TORCH_CHECK(t.device() == like.device(), name, ": expected the device of the other logits");
}

// [N, H, W] in one of `types`, on the device of `like`.
inline void check_plane(const char* name, const Tensor& t, const Tensor& like, int64_t height, int64_t width,
                        std::initializer_list<ScalarType> types) {
  STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == like.size(0) && t.size(1) == height && t.size(2) == width,
                  name, ": found shape ", shape_of(t), ", expected [", like.size(0), ", ", height, ", ",
                  width, "]");
  bool known = false;
  for (const ScalarType type : types) known = known || t.scalar_type() == type;
  STD_TORCH_CHECK(known, name, ": found dtype ", torch::headeronly::toString(t.scalar_type()));
  STD_TORCH_CHECK(t.device() == like.device(), name, ": expected the device of the logits");
}

inline void check_target(const Tensor& target, const Tensor& like) {
  STD_TORCH_CHECK(target.dim() == 3, "target: found shape ", shape_of(target), ", expected [N, H, W]");
  check_plane("target", target, like, target.size(1), target.size(2), {ScalarType::Byte, ScalarType::Long});
}

inline void check_pixel_weight(const std::optional<Tensor>& weight, const Tensor& like, int64_t height,
                               int64_t width) {
  if (weight) check_plane("pixel_weight", *weight, like, height, width, {ScalarType::Float});
}

inline void check_class_values(const char* name, const std::optional<Tensor>& values, const Tensor& like) {
  if (!values) return;
  STD_TORCH_CHECK(values->dim() == 1 && values->size(0) == like.size(1) &&
                      values->scalar_type() == ScalarType::Float && values->device() == like.device(),
                  name, ": expected float32 [", like.size(1), "] on the device of the logits");
}

inline Activation activation_of(int64_t code) {
  STD_TORCH_CHECK(code >= 0 && code <= 2, "activation: found ", code, ", expected 0 to 2");
  return static_cast<Activation>(code);
}

// float32 [N, C, H, W] beside logits [N, C, h, w].
inline void check_gradient(const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == like.size(0) && t.size(1) == like.size(1) && t.size(2) > 0 &&
                      t.size(3) > 0 && t.scalar_type() == ScalarType::Float && t.device() == like.device(),
                  "gradient: found ", torch::headeronly::toString(t.scalar_type()), " ", shape_of(t),
                  ", expected float32 [", like.size(0), ", ", like.size(1),
                  ", H, W] on the device of the logits");
}

inline void check_size(const std::vector<int64_t>& size) {
  STD_TORCH_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0,
                  "size: expected two positive numbers, H and W");
}

}  // namespace udas
