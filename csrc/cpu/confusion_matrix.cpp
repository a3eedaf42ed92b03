// confusion_matrix on the CPU.
#include "device.h"

namespace udas {
namespace cpu {

void Device::confusion_matrix(const Tensor& logits, const Tensor& target, int64_t ignore_index,
                              bool align_corners, Tensor& counts) const {
  ConfusionTask task(Grid(target.size(0), target.size(1), target.size(2)), map_of(logits), align_corners);
  task.target = plane_of(target);
  task.ignore_index = ignore_index;
  task.counts = counts.mutable_data_ptr<int64_t>();
  std::fill_n(task.counts, counts.numel(), 0);
  parallel(task.grid.bands(), 1,
           [&](int64_t begin, int64_t end) { kernels().confusion_matrix(task, begin, end); });
  check_bad_label("target", task.bad_label, task.map.classes, ignore_index);
}

}  // namespace cpu
}  // namespace udas
