// region_mix on the CPU.
#include "device.h"

namespace udas {
namespace cpu {

constexpr int64_t kRowsPerThread = 16;

void Device::region_mix(const MixArguments& in, MixResults& out) const {
  MixTask task{};
  task.samples = in.inside.size(0);
  task.channels = in.inside.size(1);
  task.height = in.inside.size(2);
  task.width = in.inside.size(3);
  task.inside = in.inside.const_data_ptr();
  task.outside = in.outside.const_data_ptr();
  task.in_type = type_of(in.inside);
  task.inside_label = plane_of(in.inside_label);
  task.outside_label = plane_of(in.outside_label);
  for (int i = 0; i < 4; ++i) {
    task.inside_stride[i] = in.inside.stride(i);
    task.outside_stride[i] = in.outside.stride(i);
    task.image_stride[i] = out.image.stride(i);
  }
  task.region = in.kind;
  if (in.kind == Region::box) {
    task.boxes = in.region.const_data_ptr<int32_t>();
  } else if (in.kind == Region::classes) {
    task.table = in.region.const_data_ptr<bool>();
    task.table_classes = in.region.size(1);
  } else {
    task.mask = plane_of(in.region);
  }
  task.affine = in.affine;
  task.image = out.image.mutable_data_ptr();
  task.out_type = type_of(out.image);
  task.label = out.label.mutable_data_ptr();
  parallel(task.samples * task.height, kRowsPerThread,
           [&](int64_t begin, int64_t end) { kernels().region_mix(task, begin, end); });
  check_bad_label("inside_label", task.bad_label, task.table_classes, 255);
}

}  // namespace cpu
}  // namespace udas
