#pragma once
// The operators as torch calls them, once for all devices: each checks its arguments, makes the results and
// gives both to the device. Schemas: ops.cpp. Checks: check.h. A Device (cpu/device.h, cuda/device.h) is made
// from the first tensor of a call, whose device is current as long as it lives, and has the member functions
//   loss<Loss>(LossArguments, LossResults)      for each of AllLosses
//   upsample_backward(LossArguments, LossResults)
//   upsample, pseudo_label, confusion_matrix, region_mix
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <utility>

#include "check.h"
#include "core/losses.h"
#include "core/predict.h"
#include "core/region.h"

namespace udas {

// ---- checked arguments, and the results to fill -----------------------------------------------------------

// Arguments that every loss has.
struct LossOptions {
  Optional pixel_weight;
  bool align_corners;
  int64_t reduction;
  bool with_grad;
};

struct LossArguments {
  std::vector<Tensor> maps;  // those with a gradient first, then the teachers
  Sizes size;
  LossOptions options;
  Optional target = std::nullopt, class_weight = std::nullopt, mask = std::nullopt;
  int64_t ignore_index = 255;
  double temperature = 1.0;
  Optional incoming = std::nullopt;  // of upsample_backward
  Activation activation = Activation::none;

  bool per_pixel() const { return options.reduction == kNone; }
  const Tensor& like() const { return maps[0]; }
};

struct LossResults {
  Tensor loss;                    // float32 [], or [N, H, W] for reduction none
  Tensor scale;                   // float32 []
  std::vector<Tensor> gradients;  // float32 [N, C, h, w] each, or [0] where not asked for
};

struct PseudoLabelArguments {
  const std::vector<Tensor>& views;
  float threshold;
  Optional class_threshold;  // float32 [C], contiguous
  float inverse_temperature;
  Optional flips;          // bool [K, N], contiguous
  uint32_t flipped_views;  // a bit for each view that is mirrored in every sample
  bool mean, align_corners;
  uint8_t ignore_label;
};

struct PseudoLabelResults {
  Tensor label, confidence;  // uint8 and float32 [N, H, W]
  Tensor histogram;          // int64 [C, 2, 64]
};

struct MixArguments {
  const Tensor &inside, &outside, &inside_label, &outside_label;
  Region kind;
  Tensor region;               // boxes and class table: contiguous
  std::vector<Affine> affine;  // per channel
  bool channels_last;
};

struct MixResults {
  Tensor image, label;
};

namespace front {

// ---- losses -----------------------------------------------------------------------------------------------

using OneGradient = std::tuple<Tensor, Tensor, Tensor>;
using TwoGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline LossResults loss_results(const LossArguments& in, int gradients) {
  const Tensor& like = in.like();
  LossResults out{
      empty(like, in.per_pixel() ? Sizes{like.size(0), in.size[0], in.size[1]} : Sizes{}, ScalarType::Float),
      empty(like, {}, ScalarType::Float),
      {}};
  for (int m = 0; m < gradients; ++m) {
    const Tensor& map = in.maps[m];
    const Sizes size{map.size(0), map.size(1), map.size(2), map.size(3)};
    out.gradients.push_back(empty(like, in.options.with_grad ? size : Sizes{0}, ScalarType::Float));
  }
  return out;
}

// The result of a loss as the schema has it: loss, scale and one or two gradients.
template <class Loss, class Device>
auto run_loss(const LossArguments& in) {
  check_reduction(in.options.reduction);
  if (in.options.pixel_weight) {
    check_plane("pixel_weight", *in.options.pixel_weight, in.like(), in.size[0], in.size[1],
                {ScalarType::Float}, "float32");
  }
  const Device device(in.like());
  LossResults out = loss_results(in, Loss::kMaps);
  device.template loss<Loss>(in, out);
  if constexpr (Loss::kMaps == 1) {
    return OneGradient{out.loss, out.scale, out.gradients[0]};
  } else {
    return TwoGradients{out.loss, out.scale, out.gradients[0], out.gradients[1]};
  }
}

template <class Device>
OneGradient cross_entropy(const Tensor& logits, const Tensor& target, const Optional& weight,
                          const Optional& pixel_weight, int64_t ignore_index, bool align_corners,
                          int64_t reduction, bool with_grad) {
  check_logits("logits", logits);
  check_target(target, logits);
  check_class_values("weight", weight, logits);
  LossArguments in{
      {logits}, {target.size(1), target.size(2)}, {pixel_weight, align_corners, reduction, with_grad}};
  in.target = target;
  in.ignore_index = ignore_index;
  in.class_weight = contiguous(weight);
  return run_loss<CrossEntropy, Device>(in);
}

template <class Device>
TwoGradients rectified_cross_entropy(const Tensor& primary, const Tensor& auxiliary, const Tensor& target,
                                     const Optional& pixel_weight, int64_t ignore_index, bool align_corners,
                                     int64_t reduction, bool with_grad) {
  check_logits("primary", primary);
  check_like("auxiliary", auxiliary, primary);
  check_target(target, primary);
  LossArguments in{{primary, auxiliary},
                   {target.size(1), target.size(2)},
                   {pixel_weight, align_corners, reduction, with_grad}};
  in.target = target;
  in.ignore_index = ignore_index;
  return run_loss<RectifiedCrossEntropy, Device>(in);
}

template <class Device>
TwoGradients symmetric_kl(const Tensor& a, const Tensor& b, Sizes size, const Optional& pixel_weight,
                          bool align_corners, int64_t reduction, bool with_grad) {
  check_logits("a", a);
  check_like("b", b, a);
  check_size(size);
  return run_loss<SymmetricKl, Device>({{a, b}, size, {pixel_weight, align_corners, reduction, with_grad}});
}

template <class Device>
TwoGradients ensemble_kl(const Tensor& primary, const Tensor& auxiliary, Sizes size,
                         const Optional& pixel_weight, bool align_corners, int64_t reduction,
                         bool with_grad) {
  check_logits("primary", primary);
  check_like("auxiliary", auxiliary, primary);
  check_size(size);
  return run_loss<EnsembleKl, Device>(
      {{primary, auxiliary}, size, {pixel_weight, align_corners, reduction, with_grad}});
}

template <class Device>
OneGradient distillation_kl(const Tensor& student, std::vector<Tensor> teachers, Sizes size,
                            double temperature, const Optional& mask, const Optional& pixel_weight,
                            bool align_corners, int64_t reduction, bool with_grad) {
  check_logits("student", student);
  check_size(size);
  check_many("teachers", teachers, &student);
  check_temperature(temperature);
  if (mask) check_plane("mask", *mask, student, size[0], size[1], {ScalarType::Bool}, "bool");
  LossArguments in{{student}, size, {pixel_weight, align_corners, reduction, with_grad}};
  in.maps.insert(in.maps.end(), teachers.begin(), teachers.end());
  in.mask = mask;
  in.temperature = temperature;
  return run_loss<DistillationKl, Device>(in);
}

template <class Device>
OneGradient soft_cross_entropy(const Tensor& logits, const Tensor& probabilities, Sizes size,
                               const Optional& mask, const Optional& pixel_weight, bool align_corners,
                               int64_t reduction, bool with_grad) {
  check_logits("logits", logits);
  check_like("probabilities", probabilities, logits);
  check_size(size);
  if (mask) check_plane("mask", *mask, logits, size[0], size[1], {ScalarType::Bool}, "bool");
  LossArguments in{{logits, probabilities}, size, {pixel_weight, align_corners, reduction, with_grad}};
  in.mask = mask;
  return run_loss<SoftCrossEntropy, Device>(in);
}

// `target`: probabilities, or labels.
template <class Device>
OneGradient squared_error(const Tensor& logits, const Tensor& target, Sizes size, const Optional& mask,
                          const Optional& pixel_weight, int64_t ignore_index, bool align_corners,
                          int64_t reduction, bool with_grad) {
  check_logits("logits", logits);
  check_size(size);
  if (mask) check_plane("mask", *mask, logits, size[0], size[1], {ScalarType::Bool}, "bool");
  LossArguments in{{logits}, size, {pixel_weight, align_corners, reduction, with_grad}};
  if (target.dim() == 4) {
    check_like("target", target, logits);
    in.maps.push_back(target);
  } else {
    check_plane("target", target, logits, size[0], size[1], {ScalarType::Byte, ScalarType::Long},
                "uint8 or int64");
    in.target = target;
  }
  in.mask = mask;
  in.ignore_index = ignore_index;
  return run_loss<SquaredError, Device>(in);
}

template <class Device>
OneGradient entropy(const Tensor& logits, Sizes size, const Optional& pixel_weight, bool align_corners,
                    int64_t reduction, bool with_grad) {
  check_logits("logits", logits);
  check_size(size);
  return run_loss<Entropy, Device>({{logits}, size, {pixel_weight, align_corners, reduction, with_grad}});
}

// ---- upsampling -------------------------------------------------------------------------------------------

template <class Device>
Tensor upsample(const Tensor& logits, Sizes size, int64_t activation, bool align_corners) {
  check_logits("logits", logits);
  check_size(size);
  const Activation chosen = activation_of(activation);
  const Device device(logits);
  Tensor out = empty(logits, {logits.size(0), logits.size(1), size[0], size[1]}, ScalarType::Float);
  device.upsample(logits, chosen, align_corners, out);
  return out;
}

// Runs as a loss, Σ gradient · activation(logits), of which the gradient is the result.
template <class Device>
Tensor upsample_backward(const Tensor& gradient, const Tensor& logits, int64_t activation,
                         bool align_corners) {
  check_logits("logits", logits);
  check_gradient(gradient, logits);
  LossArguments in{{logits}, {gradient.size(2), gradient.size(3)}, {std::nullopt, align_corners, kSum, true}};
  in.incoming = gradient;
  in.activation = activation_of(activation);
  const Device device(logits);
  LossResults out = loss_results(in, 1);
  device.upsample_backward(in, out);
  return out.gradients[0];
}

// ---- predictions ------------------------------------------------------------------------------------------

template <class Device>
std::tuple<Tensor, Tensor, Tensor> pseudo_label(std::vector<Tensor> views, Sizes size, double threshold,
                                                const Optional& class_threshold, double temperature,
                                                const Optional& flips, int64_t flipped_views, bool mean,
                                                bool align_corners, int64_t ignore_index) {
  check_many("views", views);
  check_size(size);
  const Tensor& like = views[0];
  check_class_values("threshold", class_threshold, like);
  check_flips(flips, flipped_views, views);
  check_finite("threshold", threshold);
  check_temperature(temperature);
  check_label_byte(ignore_index);
  const Device device(like);
  const PseudoLabelArguments in{views,
                                static_cast<float>(threshold),
                                contiguous(class_threshold),
                                static_cast<float>(1.0 / temperature),
                                contiguous(flips),
                                static_cast<uint32_t>(flipped_views),
                                mean,
                                align_corners,
                                static_cast<uint8_t>(ignore_index)};
  const Sizes full{like.size(0), size[0], size[1]};
  PseudoLabelResults out{empty(like, full, ScalarType::Byte), empty(like, full, ScalarType::Float),
                         empty(like, {like.size(1), 2, kBins}, ScalarType::Long)};
  device.pseudo_label(in, out);
  return {out.label, out.confidence, out.histogram};
}

template <class Device>
Tensor confusion_matrix(const Tensor& logits, const Tensor& target, int64_t ignore_index,
                        bool align_corners) {
  check_logits("logits", logits);
  check_target(target, logits);
  const Device device(logits);
  Tensor counts = empty(logits, {logits.size(1), logits.size(1)}, ScalarType::Long);
  device.confusion_matrix(logits, target, ignore_index, align_corners, counts);
  return counts;
}

// ---- mixing -----------------------------------------------------------------------------------------------

template <class Device>
std::tuple<Tensor, Tensor> region_mix(const Tensor& inside, const Tensor& outside, const Tensor& inside_label,
                                      const Tensor& outside_label, const Tensor& region,
                                      std::vector<double> mean, std::vector<double> std, ScalarType out_dtype,
                                      bool channels_last) {
  check_image("inside", inside, inside);
  check_image("outside", outside, inside);
  const Sizes size{inside.size(0), inside.size(1), inside.size(2), inside.size(3)};
  check_plane("inside_label", inside_label, inside, size[2], size[3], {ScalarType::Byte, ScalarType::Long},
              "uint8 or int64");
  check_plane("outside_label", outside_label, inside, size[2], size[3], {inside_label.scalar_type()},
              "the dtype of inside_label");
  check_region(region, inside);
  check_mixed_image(inside, mean, std, out_dtype);
  const Device device(inside);
  const Region kind = region.dim() == 3                          ? Region::mask
                      : region.scalar_type() == ScalarType::Bool ? Region::classes
                                                                 : Region::box;
  const double unit = inside.scalar_type() == ScalarType::Byte && out_dtype != ScalarType::Byte ? 255.0 : 1.0;
  MixArguments in{inside,       outside,
                  inside_label, outside_label,
                  kind,         kind == Region::mask ? region : *contiguous(Optional(region)),
                  {},           channels_last};
  for (int64_t c = 0; c < size[1]; ++c) {
    in.affine.push_back(affine(unit, mean.empty() ? 0.0 : mean[c], std.empty() ? 1.0 : std[c]));
  }
  MixResults out{empty(inside, size, out_dtype, channels_last),
                 empty(inside, {size[0], size[2], size[3]}, inside_label.scalar_type())};
  device.region_mix(in, out);
  return {out.image, out.label};
}

// ---- registration -----------------------------------------------------------------------------------------

template <class Device, class Library>
void register_operators(Library& m) {
  m.impl("cross_entropy", TORCH_BOX(&cross_entropy<Device>));
  m.impl("rectified_cross_entropy", TORCH_BOX(&rectified_cross_entropy<Device>));
  m.impl("symmetric_kl", TORCH_BOX(&symmetric_kl<Device>));
  m.impl("ensemble_kl", TORCH_BOX(&ensemble_kl<Device>));
  m.impl("distillation_kl", TORCH_BOX(&distillation_kl<Device>));
  m.impl("soft_cross_entropy", TORCH_BOX(&soft_cross_entropy<Device>));
  m.impl("squared_error", TORCH_BOX(&squared_error<Device>));
  m.impl("entropy", TORCH_BOX(&entropy<Device>));
  m.impl("upsample", TORCH_BOX(&upsample<Device>));
  m.impl("upsample_backward", TORCH_BOX(&upsample_backward<Device>));
  m.impl("pseudo_label", TORCH_BOX(&pseudo_label<Device>));
  m.impl("confusion_matrix", TORCH_BOX(&confusion_matrix<Device>));
  m.impl("region_mix", TORCH_BOX(&region_mix<Device>));
}

}  // namespace front
}  // namespace udas
