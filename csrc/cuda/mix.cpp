// region_mix on CUDA.
#include <tuple>

#include "convert.h"

namespace udas {
namespace cuda {
namespace {

void check_image(const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.dim() == 4 && shape_of(t) == shape_of(like), name, ": found shape ", shape_of(t),
                  ", expected [N, channels, H, W], the same for both images");
  const ScalarType type = t.scalar_type();
  const bool known = type == ScalarType::Byte || type == ScalarType::Float || type == ScalarType::Half ||
                     type == ScalarType::BFloat16;
  STD_TORCH_CHECK(known && type == like.scalar_type() && t.device() == like.device(), name, ": found ",
                  torch::headeronly::toString(type),
                  ", expected uint8, float32, float16 or bfloat16, one dtype and device for both");
}

// Boxes, class table or mask, whichever `region` is; returns what has to live until the launch.
Tensor describe_region(MixTask& task, const Tensor& region, const Tensor& image) {
  STD_TORCH_CHECK(region.device() == image.device(), "region: expected the device of the images");
  const Tensor dense = torch::stable::contiguous(region);
  if (region.scalar_type() == ScalarType::Int) {
    STD_TORCH_CHECK(region.dim() == 2 && region.size(0) == task.samples && region.size(1) == 4,
                    "region: found shape ", shape_of(region), ", expected boxes [N, 4]");
    task.region = Region::box;
    task.boxes = dense.const_data_ptr<int32_t>();
  } else if (region.dim() == 2) {
    STD_TORCH_CHECK(region.scalar_type() == ScalarType::Bool && region.size(0) == task.samples,
                    "region: found shape ", shape_of(region), ", expected a bool class table [N, C]");
    task.region = Region::classes;
    task.table = dense.const_data_ptr<bool>();
    task.table_classes = region.size(1);
  } else {
    check_plane("region", region, image, task.height, task.width, {ScalarType::Bool});
    task.region = Region::mask;
    task.mask = dense.const_data_ptr<bool>();
  }
  return dense;
}

void describe_values(MixTask& task, const std::vector<double>& mean, const std::vector<double>& std,
                     bool from_bytes, ScalarType out_dtype) {
  const size_t channels = task.channels;
  STD_TORCH_CHECK((mean.empty() || mean.size() == channels) && (std.empty() || std.size() == channels),
                  "mean, std: expected one number per channel");
  const bool to_bytes = out_dtype == ScalarType::Byte;
  STD_TORCH_CHECK(!to_bytes || (from_bytes && mean.empty() && std.empty()),
                  "out_dtype: found uint8, expected a floating dtype for floating or normalised images");
  STD_TORCH_CHECK(to_bytes || out_dtype == ScalarType::Float || out_dtype == ScalarType::Half ||
                      out_dtype == ScalarType::BFloat16,
                  "out_dtype: found ", torch::headeronly::toString(out_dtype),
                  ", expected uint8, float32, float16 or bfloat16");
  for (size_t c = 0; c < channels; ++c) {
    task.affine[c] = affine(from_bytes && !to_bytes ? 255.0 : 1.0, mean.empty() ? 0.0 : mean[c],
                            std.empty() ? 1.0 : std[c]);
  }
}

std::tuple<Tensor, Tensor> region_mix(const Tensor& inside, const Tensor& outside, const Tensor& inside_label,
                                      const Tensor& outside_label, const Tensor& region,
                                      std::vector<double> mean, std::vector<double> std, ScalarType out_dtype,
                                      bool channels_last) {
  check_image("inside", inside, inside);
  check_image("outside", outside, inside);
  const int64_t samples = inside.size(0), channels = inside.size(1);
  const int64_t height = inside.size(2), width = inside.size(3);
  STD_TORCH_CHECK(channels <= kMaxChannels, "inside: found ", channels, " channels, expected at most ",
                  kMaxChannels);
  check_plane("inside_label", inside_label, inside, height, width, {ScalarType::Byte, ScalarType::Long});
  check_plane("outside_label", outside_label, inside, height, width, {inside_label.scalar_type()});
  const Place place(inside);
  const Tensor labels_in = torch::stable::contiguous(inside_label);
  const Tensor labels_out = torch::stable::contiguous(outside_label);
  MixTask task{};
  task.inside = map_of(inside);
  task.outside = map_of(outside);
  task.samples = samples;
  task.channels = static_cast<int32_t>(channels);
  task.height = task.inside.height;
  task.width = task.inside.width;
  describe_values(task, mean, std, inside.scalar_type() == ScalarType::Byte, out_dtype);
  const Tensor dense_region = describe_region(task, region, inside);
  Tensor image = torch::stable::empty(std::vector<int64_t>{samples, channels, height, width}, out_dtype,
                                      std::nullopt, inside.device(), std::nullopt,
                                      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                                    : torch::headeronly::MemoryFormat::Contiguous);
  Tensor label = empty(inside, {samples, height, width}, inside_label.scalar_type());
  task.inside_label = labels_of(labels_in);
  task.outside_label = labels_of(labels_out);
  task.image = image.mutable_data_ptr();
  task.out_type = type_of(image);
  task.channels_last = channels_last;
  task.label = label.mutable_data_ptr();
  check_launch(run_region_mix(task, place.stream()));
  return {image, label};
}

}  // namespace
}  // namespace cuda
}  // namespace udas

STABLE_TORCH_LIBRARY_IMPL(udas_fast, UDAS_CUDA_KEY, m) {
  m.impl("region_mix", TORCH_BOX(&udas::cuda::region_mix));
}
