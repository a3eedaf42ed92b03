// pseudo_label on the CPU.
#include "device.h"

namespace udas {
namespace cpu {

void Device::pseudo_label(const PseudoLabelArguments& in, PseudoLabelResults& out) const {
  const int64_t classes = in.views[0].size(1);
  PseudoLabelTask task(Grid(out.label.size(0), out.label.size(1), out.label.size(2)));
  const int64_t padded = task.grid.tiles * kTile;
  for (const Tensor& view : in.views) {
    task.views.push_back(map_of(view));
    task.rows.emplace_back(view.size(2), task.grid.height, in.align_corners, task.grid.height);
    task.columns.emplace_back(view.size(3), task.grid.width, in.align_corners, padded);
    if (in.flips || in.flipped_views != 0) {
      task.flipped_columns.emplace_back(view.size(3), task.grid.width, in.align_corners, padded, true);
    }
  }
  task.flips = data_of<bool>(in.flips);
  task.flipped_views = in.flipped_views;
  task.threshold.assign(classes, in.threshold);
  if (in.class_threshold) {
    std::copy_n(in.class_threshold->const_data_ptr<float>(), classes, task.threshold.begin());
  }
  task.mean = in.mean;
  task.inverse_temperature = in.inverse_temperature;
  task.ignore_label = in.ignore_label;
  task.label = out.label.mutable_data_ptr<uint8_t>();
  task.confidence = out.confidence.mutable_data_ptr<float>();
  task.histogram = out.histogram.mutable_data_ptr<int64_t>();
  std::fill_n(task.histogram, out.histogram.numel(), 0);
  parallel(task.grid.bands(), 1,
           [&](int64_t begin, int64_t end) { kernels().pseudo_label(task, begin, end); });
}

}  // namespace cpu
}  // namespace udas
