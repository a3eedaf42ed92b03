// The operators other than losses on CUDA: each describes its task and launches it. The kernels are in the
// .cu file of the operator's name.
#include "device.h"

// The key these operators are registered under; a test that runs the kernels on the CPU sets another.
#ifndef UDAS_CUDA_KEY
#define UDAS_CUDA_KEY CUDA
#endif

namespace udas {
namespace cuda {

void Device::upsample(const Tensor& logits, Activation activation, bool align_corners, Tensor& out) const {
  UpsampleTask task{};
  task.tiling = tiling_of(out.size(0), out.size(2), out.size(3), align_corners);
  task.classes = static_cast<int32_t>(logits.size(1));
  task.map = map_of(logits);
  task.activation = activation;
  task.inverse_log_classes = inverse_log_classes(logits);
  task.out = out.mutable_data_ptr<float>();
  plan_upsample(task);
  check_launch(run_upsample(task, guard_.stream()));
}

void Device::pseudo_label(const PseudoLabelArguments& in, PseudoLabelResults& out) const {
  const Tensor& label = out.label;
  PseudoLabelTask task{};
  task.tiling = tiling_of(label.size(0), label.size(1), label.size(2), in.align_corners);
  task.classes = static_cast<int32_t>(in.views[0].size(1));
  task.views = static_cast<int32_t>(in.views.size());
  for (int k = 0; k < task.views; ++k) task.maps[k] = map_of(in.views[k]);
  task.flips = data_of<bool>(in.flips);
  task.flipped_views = in.flipped_views;
  task.mean = in.mean;
  task.inverse_temperature = in.inverse_temperature;
  task.threshold = in.threshold;
  task.class_threshold = data_of<float>(in.class_threshold);
  task.ignore_label = in.ignore_label;
  task.label = out.label.mutable_data_ptr<uint8_t>();
  task.confidence = out.confidence.mutable_data_ptr<float>();
  task.histogram = static_cast<unsigned long long*>(out.histogram.mutable_data_ptr());
  plan_pseudo_label(task);
  check_launch(run_pseudo_label(task, guard_.stream()));
}

void Device::confusion_matrix(const Tensor& logits, const Tensor& target, int64_t ignore_index,
                              bool align_corners, Tensor& counts) const {
  const Tensor labels = torch::stable::contiguous(target);
  ConfusionTask task{};
  task.tiling = tiling_of(target.size(0), target.size(1), target.size(2), align_corners);
  task.classes = static_cast<int32_t>(logits.size(1));
  task.map = map_of(logits);
  task.target = labels_of(labels);
  task.ignore_index = ignore_index;
  task.counts = static_cast<unsigned long long*>(counts.mutable_data_ptr());
  plan_confusion_matrix(task);
  check_launch(run_confusion_matrix(task, guard_.stream()));
}

void Device::region_mix(const MixArguments& in, MixResults& out) const {
  STD_TORCH_CHECK(in.inside.size(1) <= kMaxChannels, "inside: found ", in.inside.size(1),
                  " channels, expected at most ", kMaxChannels, " on CUDA");
  const Tensor labels_in = torch::stable::contiguous(in.inside_label);
  const Tensor labels_out = torch::stable::contiguous(in.outside_label);
  const Tensor region = torch::stable::contiguous(in.region);
  MixTask task{};
  task.samples = in.inside.size(0);
  task.channels = static_cast<int32_t>(in.inside.size(1));
  task.inside = map_of(in.inside);
  task.outside = map_of(in.outside);
  task.height = task.inside.height;
  task.width = task.inside.width;
  task.inside_label = labels_of(labels_in);
  task.outside_label = labels_of(labels_out);
  task.region = in.kind;
  if (in.kind == Region::box) {
    task.boxes = region.const_data_ptr<int32_t>();
  } else if (in.kind == Region::classes) {
    task.table = region.const_data_ptr<bool>();
    task.table_classes = region.size(1);
  } else {
    task.mask = region.const_data_ptr<bool>();
  }
  std::copy(in.affine.begin(), in.affine.end(), task.affine);
  task.image = out.image.mutable_data_ptr();
  task.out_type = type_of(out.image);
  task.channels_last = in.channels_last;
  task.label = out.label.mutable_data_ptr();
  check_launch(run_region_mix(task, guard_.stream()));
}

}  // namespace cuda
}  // namespace udas

STABLE_TORCH_LIBRARY_IMPL(udas_fast, UDAS_CUDA_KEY, m) {
  udas::front::register_operators<udas::cuda::Device>(m);
}
