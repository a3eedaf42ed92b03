// The schema of every operator. Meaning: udas_fast/ops. Entries: front.h. Kernels: cpu/ and cuda/.
//
// Losses return (loss, scale, gradients...). reduction: 0 none, 1 mean, 2 sum. loss is float32, a scalar or,
// for none, [N, H, W]. Gradients are float32 [N, C, h, w], contiguous, of the *sum* of the weighted pixel
// losses, and empty ([0]) where not asked for; the gradient of the result is scale times them, scale being a
// float32 scalar on the device: 1 / count for mean (0 where nothing counts), else 1. For reduction none the
// backward pass calls the operator again with the incoming gradient multiplied into pixel_weight and takes
// the gradient of the sum. pixel_weight [N, H, W] float32 multiplies each pixel's loss and never enters the
// count.
//
// None has an autograd formula: udas_fast/ops differentiates them.
//
// pseudo_label mirrors view k of sample n where flips[k, n] or bit k of flipped_views is set.
//
// upsample returns float32 [N, C, H, W]; activation: 0 none, 1 softmax, 2 self-information. upsample_backward
// returns float32 [N, C, h, w] for a float32 gradient [N, C, H, W] of any strides.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(udas_fast, m) {
  m.def(
      "pseudo_label(Tensor[] views, int[] size, float threshold, Tensor? class_threshold, float temperature, "
      "Tensor? flips, int flipped_views, bool mean, bool align_corners, int ignore_index) -> (Tensor, "
      "Tensor, Tensor)");
  m.def("confusion_matrix(Tensor logits, Tensor target, int ignore_index, bool align_corners) -> Tensor");
  m.def(
      "cross_entropy(Tensor logits, Tensor target, Tensor? weight, Tensor? pixel_weight, int ignore_index, "
      "bool align_corners, int reduction, bool with_grad) -> (Tensor, Tensor, Tensor)");
  m.def(
      "rectified_cross_entropy(Tensor primary, Tensor auxiliary, Tensor target, Tensor? pixel_weight, "
      "int ignore_index, bool align_corners, int reduction, bool with_grad) -> (Tensor, Tensor, Tensor, "
      "Tensor)");
  m.def(
      "symmetric_kl(Tensor a, Tensor b, int[] size, Tensor? pixel_weight, bool align_corners, int reduction, "
      "bool with_grad) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "ensemble_kl(Tensor primary, Tensor auxiliary, int[] size, Tensor? pixel_weight, bool align_corners, "
      "int reduction, bool with_grad) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "distillation_kl(Tensor student, Tensor[] teachers, int[] size, float temperature, Tensor? mask, "
      "Tensor? pixel_weight, bool align_corners, int reduction, bool with_grad) -> (Tensor, Tensor, Tensor)");
  m.def(
      "soft_cross_entropy(Tensor logits, Tensor probabilities, int[] size, Tensor? mask, Tensor? "
      "pixel_weight, "
      "bool align_corners, int reduction, bool with_grad) -> (Tensor, Tensor, Tensor)");
  m.def(
      "squared_error(Tensor logits, Tensor target, int[] size, Tensor? mask, Tensor? pixel_weight, "
      "int ignore_index, bool align_corners, int reduction, bool with_grad) -> (Tensor, Tensor, Tensor)");
  m.def(
      "entropy(Tensor logits, int[] size, Tensor? pixel_weight, bool align_corners, int reduction, "
      "bool with_grad) -> (Tensor, Tensor, Tensor)");
  m.def("upsample(Tensor logits, int[] size, int activation, bool align_corners) -> Tensor");
  m.def("upsample_backward(Tensor gradient, Tensor logits, int activation, bool align_corners) -> Tensor");
  m.def(
      "region_mix(Tensor inside, Tensor outside, Tensor inside_label, Tensor outside_label, Tensor region, "
      "float[] mean, float[] std, ScalarType out_dtype, bool channels_last) -> (Tensor, Tensor)");
  m.def("build_info() -> str");
}
