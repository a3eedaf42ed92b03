// region_mix on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "convert.h"

namespace udas {
namespace cpu {
namespace {

constexpr int64_t kRowsPerThread = 16;

void check_image(const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.dim() == 4 && shape_of(t) == shape_of(like), name, ": found shape ", shape_of(t),
                  ", expected [N, channels, H, W], the same for both images");
  const ScalarType type = t.scalar_type();
  const bool known = type == ScalarType::Byte || type == ScalarType::Float || type == ScalarType::Half ||
                     type == ScalarType::BFloat16;
  STD_TORCH_CHECK(known && type == like.scalar_type() && t.is_cpu(), name, ": found ",
                  torch::headeronly::toString(type),
                  ", expected uint8, float32, float16 or bfloat16, one for both");
}

// Boxes, class table or mask, whichever `region` is.
void describe_region(MixTask& task, const Tensor& region, const Tensor& image) {
  STD_TORCH_CHECK(region.is_cpu(), "region: expected the device of the images");
  if (region.scalar_type() == ScalarType::Int) {
    STD_TORCH_CHECK(
        region.dim() == 2 && region.size(0) == task.samples && region.size(1) == 4 && region.is_contiguous(),
        "region: found shape ", shape_of(region), ", expected contiguous boxes [N, 4]");
    task.region = Region::box;
    task.boxes = region.const_data_ptr<int32_t>();
  } else if (region.dim() == 2) {
    STD_TORCH_CHECK(
        region.scalar_type() == ScalarType::Bool && region.size(0) == task.samples && region.is_contiguous(),
        "region: found shape ", shape_of(region), ", expected a contiguous bool class table [N, C]");
    task.region = Region::classes;
    task.table = region.const_data_ptr<bool>();
    task.table_classes = region.size(1);
  } else {
    check_plane("region", region, image, task.height, task.width, {ScalarType::Bool});
    task.region = Region::mask;
    task.mask = plane_of(region);
  }
}

// Strides of a new [N, channels, H, W] image.
std::vector<int64_t> strides(const MixTask& task, bool channels_last) {
  const int64_t c = task.channels, h = task.height, w = task.width;
  return channels_last ? std::vector<int64_t>{c * h * w, 1, w * c, c}
                       : std::vector<int64_t>{c * h * w, h * w, w, 1};
}

std::tuple<Tensor, Tensor> region_mix(const Tensor& inside, const Tensor& outside, const Tensor& inside_label,
                                      const Tensor& outside_label, const Tensor& region,
                                      std::vector<double> mean, std::vector<double> std, ScalarType out_dtype,
                                      bool channels_last) {
  check_image("inside", inside, inside);
  check_image("outside", outside, inside);
  MixTask task{};
  task.samples = inside.size(0);
  task.channels = inside.size(1);
  task.height = inside.size(2);
  task.width = inside.size(3);
  const int64_t channels = task.channels;
  check_plane("inside_label", inside_label, inside, task.height, task.width,
              {ScalarType::Byte, ScalarType::Long});
  check_plane("outside_label", outside_label, inside, task.height, task.width, {inside_label.scalar_type()});
  STD_TORCH_CHECK((mean.empty() || mean.size() == static_cast<size_t>(channels)) &&
                      (std.empty() || std.size() == static_cast<size_t>(channels)),
                  "mean, std: expected one number per channel");
  describe_region(task, region, inside);
  const bool from_bytes = inside.scalar_type() == ScalarType::Byte, to_bytes = out_dtype == ScalarType::Byte;
  STD_TORCH_CHECK(!to_bytes || (from_bytes && mean.empty() && std.empty()),
                  "out_dtype: found uint8, expected a floating dtype for floating or normalised images");
  for (int64_t c = 0; c < channels; ++c) {
    task.affine.push_back(affine(from_bytes && !to_bytes ? 255.0 : 1.0, mean.empty() ? 0.0 : mean[c],
                                 std.empty() ? 1.0 : std[c]));
  }
  Tensor image = empty({task.samples, channels, task.height, task.width}, out_dtype);
  if (channels_last) {
    image = torch::stable::empty(std::vector<int64_t>{task.samples, channels, task.height, task.width},
                                 out_dtype, std::nullopt, std::nullopt, std::nullopt,
                                 torch::headeronly::MemoryFormat::ChannelsLast);
  }
  Tensor label = empty({task.samples, task.height, task.width}, inside_label.scalar_type());
  const std::vector<int64_t> image_stride = strides(task, channels_last);
  for (int i = 0; i < 4; ++i) {
    task.inside_stride[i] = inside.stride(i);
    task.outside_stride[i] = outside.stride(i);
    task.image_stride[i] = image_stride[i];
  }
  task.inside = inside.const_data_ptr();
  task.outside = outside.const_data_ptr();
  task.in_type = type_of(inside);
  task.inside_label = plane_of(inside_label);
  task.outside_label = plane_of(outside_label);
  task.image = image.mutable_data_ptr();
  task.out_type = type_of(image);
  task.label = label.mutable_data_ptr();
  parallel(task.samples * task.height, kRowsPerThread,
           [&](int64_t begin, int64_t end) { kernels().mix(task, begin, end); });
  check_bad_label("inside_label", task.bad_label, task.table_classes, 255);
  return {image, label};
}

}  // namespace
}  // namespace cpu
}  // namespace udas

STABLE_TORCH_LIBRARY_IMPL(udas_fast, CPU, m) { m.impl("region_mix", TORCH_BOX(&udas::cpu::region_mix)); }
