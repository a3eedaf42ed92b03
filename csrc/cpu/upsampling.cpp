// upsample on the CPU; upsample_backward is in losses.cpp.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "convert.h"

namespace udas {
namespace cpu {
namespace {

Tensor upsample(const Tensor& logits, std::vector<int64_t> size, int64_t activation, bool align_corners) {
  check_logits("logits", logits);
  check_size(size);
  const int64_t samples = logits.size(0), classes = logits.size(1);
  UpsampleTask task(Grid(samples, size[0], size[1]), map_of(logits), align_corners);
  task.activation = activation_of(activation);
  task.inverse_log_classes = static_cast<float>(1.0 / std::log(static_cast<double>(classes)));
  Tensor out = empty({samples, classes, size[0], size[1]}, ScalarType::Float);
  task.out = out.mutable_data_ptr<float>();
  parallel(task.grid.bands(), 1, [&](int64_t begin, int64_t end) { kernels().upsample(task, begin, end); });
  return out;
}

}  // namespace
}  // namespace cpu
}  // namespace udas

STABLE_TORCH_LIBRARY_IMPL(udas_fast, CPU, m) { m.impl("upsample", TORCH_BOX(&udas::cpu::upsample)); }
