// upsample on CUDA; upsample_backward is in losses.cpp.
#include <cmath>

#include "convert.h"

namespace udas {
namespace cuda {
namespace {

Tensor upsample(const Tensor& logits, std::vector<int64_t> size, int64_t activation, bool align_corners) {
  check_logits("logits", logits);
  check_size(size);
  const Place place(logits);
  const int64_t samples = logits.size(0), classes = logits.size(1);
  Tensor out = empty(logits, {samples, classes, size[0], size[1]}, ScalarType::Float);
  UpsampleTask task{};
  task.tiling = tiling_of(samples, size, align_corners);
  task.classes = static_cast<int32_t>(classes);
  task.map = map_of(logits);
  task.activation = activation_of(activation);
  task.inverse_log_classes = static_cast<float>(1.0 / std::log(static_cast<double>(classes)));
  task.out = out.mutable_data_ptr<float>();
  plan_upsample(task.tiling, task.classes);
  check_launch(run_upsample(task, place.stream()));
  return out;
}

}  // namespace
}  // namespace cuda
}  // namespace udas

STABLE_TORCH_LIBRARY_IMPL(udas_fast, UDAS_CUDA_KEY, m) {
  m.impl("upsample", TORCH_BOX(&udas::cuda::upsample));
}
