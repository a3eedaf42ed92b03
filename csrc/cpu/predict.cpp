// pseudo_label and confusion_matrix on the CPU.
#include "../core/predict.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "convert.h"

namespace udas {
namespace cpu {
namespace {

void add_view(PredictTask& task, const Tensor& view, bool align_corners, bool with_flips) {
  const int64_t padded = task.grid.tiles * kTile;
  task.views.push_back(map_of(view));
  task.rows.emplace_back(view.size(2), task.grid.height, align_corners, task.grid.height);
  task.columns.emplace_back(view.size(3), task.grid.width, align_corners, padded);
  if (with_flips)
    task.flipped_columns.emplace_back(view.size(3), task.grid.width, align_corners, padded, true);
}

void run_bands(const PredictTask& task) {
  parallel(task.grid.bands(), 1,
           [&](int64_t begin, int64_t end) { kernels().predictions(task, begin, end); });
}

std::tuple<Tensor, Tensor, Tensor> pseudo_label(std::vector<Tensor> views, std::vector<int64_t> size,
                                                double threshold,
                                                const std::optional<Tensor>& class_threshold,
                                                double temperature, const std::optional<Tensor>& flips,
                                                bool mean, bool align_corners, int64_t ignore_index) {
  STD_TORCH_CHECK(!views.empty() && views.size() <= kMaxViews, "views: found ", views.size(),
                  ", expected 1 to ", kMaxViews);
  check_size(size);
  check_logits("views", views[0]);
  const int64_t samples = views[0].size(0), classes = views[0].size(1), count = views.size();
  for (const Tensor& view : views) check_like("views", view, views[0]);
  check_class_values("threshold", class_threshold, views[0]);
  if (flips) {
    STD_TORCH_CHECK(flips->dim() == 2 && flips->size(0) == count && flips->size(1) == samples &&
                        flips->scalar_type() == ScalarType::Bool && flips->is_cpu(),
                    "flips: expected bool [", count, ", ", samples, "] on the device of the views");
  }
  PredictTask task(Grid(samples, size[0], size[1]));
  for (const Tensor& view : views) add_view(task, view, align_corners, flips.has_value());
  const Tensor flip_table = flips ? torch::stable::contiguous(*flips) : Tensor();
  if (flips) task.flips = flip_table.const_data_ptr<bool>();
  task.threshold.assign(classes, static_cast<float>(threshold));
  if (class_threshold) {
    const Tensor values = torch::stable::contiguous(*class_threshold);
    std::copy_n(values.const_data_ptr<float>(), classes, task.threshold.begin());
  }
  task.mean = mean;
  task.inverse_temperature = static_cast<float>(1.0 / temperature);
  task.ignore_label = static_cast<uint8_t>(ignore_index);
  Tensor label = empty({samples, size[0], size[1]}, ScalarType::Byte);
  Tensor confidence = empty({samples, size[0], size[1]}, ScalarType::Float);
  Tensor histogram = empty({classes, 2, kBins}, ScalarType::Long);
  std::fill_n(histogram.mutable_data_ptr<int64_t>(), histogram.numel(), 0);
  task.label = label.mutable_data_ptr<uint8_t>();
  task.confidence = confidence.mutable_data_ptr<float>();
  task.histogram = histogram.mutable_data_ptr<int64_t>();
  run_bands(task);
  return {label, confidence, histogram};
}

Tensor confusion_matrix(const Tensor& logits, const Tensor& target, int64_t ignore_index,
                        bool align_corners) {
  check_logits("logits", logits);
  check_target(target, logits);
  const int64_t classes = logits.size(1);
  PredictTask task(Grid(logits.size(0), target.size(1), target.size(2)));
  add_view(task, logits, align_corners, false);
  task.target = plane_of(target);
  task.ignore_index = ignore_index;
  Tensor counts = empty({classes, classes}, ScalarType::Long);
  std::fill_n(counts.mutable_data_ptr<int64_t>(), counts.numel(), 0);
  task.confusion = counts.mutable_data_ptr<int64_t>();
  run_bands(task);
  check_bad_label("target", task.bad_label, classes, ignore_index);
  return counts;
}

}  // namespace
}  // namespace cpu
}  // namespace udas

STABLE_TORCH_LIBRARY_IMPL(udas_fast, CPU, m) {
  m.impl("pseudo_label", TORCH_BOX(&udas::cpu::pseudo_label));
  m.impl("confusion_matrix", TORCH_BOX(&udas::cpu::confusion_matrix));
}
