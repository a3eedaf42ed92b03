// pseudo_label and confusion_matrix on CUDA.
#include <tuple>

#include "../core/predict.h"
#include "convert.h"

namespace udas {
namespace cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> pseudo_label(std::vector<Tensor> views, std::vector<int64_t> size,
                                                double threshold,
                                                const std::optional<Tensor>& class_threshold,
                                                double temperature, const std::optional<Tensor>& flips,
                                                bool mean, bool align_corners, int64_t ignore_index) {
  STD_TORCH_CHECK(!views.empty() && views.size() <= kMaxViews, "views: found ", views.size(),
                  ", expected 1 to ", kMaxViews);
  check_size(size);
  check_logits("views", views[0]);
  const Tensor& like = views[0];
  const int64_t samples = like.size(0), classes = like.size(1), count = views.size();
  for (const Tensor& view : views) check_like("views", view, like);
  check_class_values("threshold", class_threshold, like);
  if (flips) {
    STD_TORCH_CHECK(flips->dim() == 2 && flips->size(0) == count && flips->size(1) == samples &&
                        flips->scalar_type() == ScalarType::Bool && flips->device() == like.device(),
                    "flips: expected bool [", count, ", ", samples, "] on the device of the views");
  }
  const Place place(like);
  const std::optional<Tensor> limits = contiguous(class_threshold), flipped = contiguous(flips);
  Tensor label = empty(like, {samples, size[0], size[1]}, ScalarType::Byte);
  Tensor confidence = empty(like, {samples, size[0], size[1]}, ScalarType::Float);
  Tensor histogram = empty(like, {classes, 2, kBins}, ScalarType::Long);
  PredictTask task{};
  task.tiling = tiling_of(samples, size, align_corners);
  task.classes = static_cast<int32_t>(classes);
  task.views = static_cast<int32_t>(count);
  for (int64_t k = 0; k < count; ++k) task.maps[k] = map_of(views[k]);
  task.flips = data_of<bool>(flipped);
  task.mean = mean;
  task.inverse_temperature = static_cast<float>(1.0 / temperature);
  task.threshold = static_cast<float>(threshold);
  task.class_threshold = data_of<float>(limits);
  task.ignore_label = static_cast<uint8_t>(ignore_index);
  task.label = label.mutable_data_ptr<uint8_t>();
  task.confidence = confidence.mutable_data_ptr<float>();
  task.histogram = static_cast<unsigned long long*>(histogram.mutable_data_ptr());
  plan_pseudo_label(task.tiling, task.classes, task.views, mean);
  check_launch(run_pseudo_label(task, place.stream()));
  return {label, confidence, histogram};
}

Tensor confusion_matrix(const Tensor& logits, const Tensor& target, int64_t ignore_index,
                        bool align_corners) {
  check_logits("logits", logits);
  check_target(target, logits);
  const Place place(logits);
  const Tensor labels = torch::stable::contiguous(target);
  const int64_t classes = logits.size(1);
  Tensor counts = empty(logits, {classes, classes}, ScalarType::Long);
  ConfusionTask task{};
  task.tiling = tiling_of(logits.size(0), {target.size(1), target.size(2)}, align_corners);
  task.classes = static_cast<int32_t>(classes);
  task.map = map_of(logits);
  task.target = labels_of(labels);
  task.ignore_index = ignore_index;
  task.counts = static_cast<unsigned long long*>(counts.mutable_data_ptr());
  plan_confusion_matrix(task.tiling, task.classes);
  check_launch(run_confusion_matrix(task, place.stream()));
  return counts;
}

}  // namespace
}  // namespace cuda
}  // namespace udas

STABLE_TORCH_LIBRARY_IMPL(udas_fast, UDAS_CUDA_KEY, m) {
  m.impl("pseudo_label", TORCH_BOX(&udas::cuda::pseudo_label));
  m.impl("confusion_matrix", TORCH_BOX(&udas::cuda::confusion_matrix));
}
