// upsample on the CPU; upsample_backward runs as a loss (losses.cpp).
#include "device.h"

namespace udas {
namespace cpu {

void Device::upsample(const Tensor& logits, Activation activation, bool align_corners, Tensor& out) const {
  UpsampleTask task(Grid(out.size(0), out.size(2), out.size(3)), map_of(logits), align_corners);
  task.activation = activation;
  task.inverse_log_classes = inverse_log_classes(logits);
  task.out = out.mutable_data_ptr<float>();
  parallel(task.grid.bands(), 1, [&](int64_t begin, int64_t end) { kernels().upsample(task, begin, end); });
}

}  // namespace cpu
}  // namespace udas
