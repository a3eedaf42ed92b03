#pragma once
// Checks of raw arguments, on which the kernels' memory safety rests: torch.ops.udas_fast is public. The
// Python functions check the same earlier and in full sentences.
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "core/activation.h"
#include "tensors.h"

namespace udas {

enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

inline void check_dtype(const char* name, const Tensor& t, std::initializer_list<ScalarType> types,
                        const char* expected) {
  bool known = false;
  for (const ScalarType type : types) known = known || t.scalar_type() == type;
  STD_TORCH_CHECK(known, name, ": found ", torch::headeronly::toString(t.scalar_type()), ", expected ",
                  expected);
}

inline void check_device(const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.device() == like.device(), name, ": expected the device of the first argument");
}

// [N, C, h, w] with 2 to 256 classes, float32, float16 or bfloat16.
inline void check_logits(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(
      t.dim() == 4 && t.size(1) >= 2 && t.size(1) <= kMaxClasses && t.size(2) > 0 && t.size(3) > 0, name,
      ": found shape ", shape_of(t), ", expected [N, C, h, w] with C from 2 to ", kMaxClasses);
  STD_TORCH_CHECK(t.size(2) < kMaxSide && t.size(3) < kMaxSide, name, ": found shape ", shape_of(t),
                  ", expected sides below 2^30");
  check_dtype(name, t, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16},
              "float32, float16 or bfloat16");
}

// As `like`: the same samples and classes on the same device, any h and w, any of the three dtypes.
inline void check_like(const char* name, const Tensor& t, const Tensor& like) {
  check_logits(name, t);
  STD_TORCH_CHECK(t.size(0) == like.size(0) && t.size(1) == like.size(1), name, ": found shape ", shape_of(t),
                  ", expected the samples and classes of ", shape_of(like));
  check_device(name, t, like);
}

// 1 to 16 logit maps of the same samples and classes.
inline void check_many(const char* name, const std::vector<Tensor>& maps, const Tensor* like = nullptr) {
  STD_TORCH_CHECK(!maps.empty() && maps.size() <= static_cast<size_t>(kMaxViews), name, ": found ",
                  maps.size(), ", expected 1 to ", kMaxViews);
  if (like == nullptr) check_logits(name, maps[0]);
  for (const Tensor& map : maps) check_like(name, map, like == nullptr ? maps[0] : *like);
}

// [N, H, W] in one of `types`, on the device of `like`.
inline void check_plane(const char* name, const Tensor& t, const Tensor& like, int64_t height, int64_t width,
                        std::initializer_list<ScalarType> types, const char* expected) {
  STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == like.size(0) && t.size(1) == height && t.size(2) == width,
                  name, ": found shape ", shape_of(t), ", expected [", like.size(0), ", ", height, ", ",
                  width, "]");
  check_dtype(name, t, types, expected);
  check_device(name, t, like);
}

inline void check_target(const Tensor& target, const Tensor& like) {
  STD_TORCH_CHECK(target.dim() == 3 && target.size(1) < kMaxSide && target.size(2) < kMaxSide,
                  "target: found shape ", shape_of(target), ", expected [N, H, W] with sides below 2^30");
  check_plane("target", target, like, target.size(1), target.size(2), {ScalarType::Byte, ScalarType::Long},
              "uint8 or int64");
}

inline void check_class_values(const char* name, const Optional& values, const Tensor& like) {
  if (!values) return;
  STD_TORCH_CHECK(values->dim() == 1 && values->size(0) == like.size(1) &&
                      values->scalar_type() == ScalarType::Float && values->device() == like.device(),
                  name, ": expected float32 [", like.size(1), "] on the device of the logits");
}

inline void check_flips(const Optional& flips, int64_t flipped_views, const std::vector<Tensor>& views) {
  const Tensor& like = views[0];
  const int64_t count = views.size();
  STD_TORCH_CHECK(flipped_views >= 0 && flipped_views < int64_t{1} << count, "flipped_views: found ",
                  flipped_views, ", expected a bit for each of ", count, " views");
  if (!flips) return;
  STD_TORCH_CHECK(flips->dim() == 2 && flips->size(0) == count && flips->size(1) == like.size(0) &&
                      flips->scalar_type() == ScalarType::Bool && flips->device() == like.device(),
                  "flips: expected bool [", count, ", ", like.size(0), "] on the device of the views");
}

inline void check_reduction(int64_t reduction) {
  STD_TORCH_CHECK(reduction >= kNone && reduction <= kSum, "reduction: found ", reduction,
                  ", expected 0 to 2");
}

inline void check_temperature(double temperature) {
  STD_TORCH_CHECK(std::isfinite(temperature) && temperature > 0.0, "temperature: found ", temperature,
                  ", expected a finite number above 0");
}

inline void check_finite(const char* name, double value) {
  STD_TORCH_CHECK(std::isfinite(value), name, ": found ", value, ", expected a finite number");
}

inline void check_label_byte(int64_t label) {
  STD_TORCH_CHECK(label >= 0 && label <= 255, "ignore_index: found ", label, ", expected 0 to 255");
}

inline void check_size(const Sizes& size) {
  STD_TORCH_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0 && size[0] < kMaxSide && size[1] < kMaxSide,
                  "size: expected two positive numbers below 2^30, H and W");
}

inline Activation activation_of(int64_t code) {
  STD_TORCH_CHECK(code >= 0 && code <= 2, "activation: found ", code, ", expected 0 to 2");
  return static_cast<Activation>(code);
}

// float32 [N, C, H, W] beside logits [N, C, h, w].
inline void check_gradient(const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == like.size(0) && t.size(1) == like.size(1) && t.size(2) > 0 &&
                      t.size(3) > 0 && t.size(2) < kMaxSide && t.size(3) < kMaxSide &&
                      t.scalar_type() == ScalarType::Float && t.device() == like.device(),
                  "gradient: found ", torch::headeronly::toString(t.scalar_type()), " ", shape_of(t),
                  ", expected float32 [", like.size(0), ", ", like.size(1),
                  ", H, W] on the device of the logits");
}

// [N, channels, H, W] of the dtype, shape and device of `like`.
inline void check_image(const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.dim() == 4 && t.size(2) < kMaxSide && t.size(3) < kMaxSide && same_shape(t, like), name,
                  ": found shape ", shape_of(t),
                  ", expected [N, channels, H, W] with sides below 2^30, the same for both images");
  check_dtype(name, t, {ScalarType::Byte, ScalarType::Float, ScalarType::Half, ScalarType::BFloat16},
              "uint8, float32, float16 or bfloat16");
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type() && t.device() == like.device(), name, ": found ",
                  torch::headeronly::toString(t.scalar_type()), ", expected one dtype and device for both");
}

// Boxes int32 [N, 4], a class table bool [N, C] or a mask bool [N, H, W].
inline void check_region(const Tensor& region, const Tensor& image) {
  check_device("region", region, image);
  const bool boxes = region.scalar_type() == ScalarType::Int;
  if (region.dim() == 2) {
    STD_TORCH_CHECK(region.size(0) == image.size(0) &&
                        (boxes ? region.size(1) == 4 : region.scalar_type() == ScalarType::Bool),
                    "region: found ", torch::headeronly::toString(region.scalar_type()), " ",
                    shape_of(region), ", expected int32 boxes [N, 4] or a bool class table [N, C]");
  } else {
    check_plane("region", region, image, image.size(2), image.size(3), {ScalarType::Bool}, "bool");
  }
}

// The dtype and normalisation of a mixed image.
inline void check_mixed_image(const Tensor& image, const std::vector<double>& mean,
                              const std::vector<double>& std, ScalarType out_dtype) {
  const size_t channels = image.size(1);
  STD_TORCH_CHECK((mean.empty() || mean.size() == channels) && (std.empty() || std.size() == channels),
                  "mean, std: expected one number per channel");
  for (const double value : mean) check_finite("mean", value);
  for (const double value : std) {
    STD_TORCH_CHECK(std::isfinite(value) && value != 0.0, "std: found ", value,
                    ", expected a finite number other than 0");
  }
  const bool to_bytes = out_dtype == ScalarType::Byte;
  STD_TORCH_CHECK(!to_bytes || (image.scalar_type() == ScalarType::Byte && mean.empty() && std.empty()),
                  "out_dtype: found uint8, expected a floating dtype for floating or normalised images");
  STD_TORCH_CHECK(to_bytes || out_dtype == ScalarType::Float || out_dtype == ScalarType::Half ||
                      out_dtype == ScalarType::BFloat16,
                  "out_dtype: found ", torch::headeronly::toString(out_dtype),
                  ", expected uint8, float32, float16 or bfloat16");
}

}  // namespace udas
