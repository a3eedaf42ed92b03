#pragma once
// From torch's tensors to the plain types of task.h, on the current stream of their device. Nothing here
// needs libtorch_cuda at link time, and nothing allocates but through torch, so that CUDA graphs can capture
// it.
#ifndef USE_CUDA
#define USE_CUDA  // without it shim.h does not declare the stream
#endif
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "../check.h"
#include "task.h"

#if defined(__GNUC__)  // absent from a CPU-only torch: weak, so that the extension still imports there
#pragma weak aoti_torch_get_current_cuda_stream
#endif

// The key these operators are registered under; a test that runs the kernels on the CPU sets another.
#ifndef UDAS_CUDA_KEY
#define UDAS_CUDA_KEY CUDA
#endif

namespace udas {
namespace cuda {

constexpr int64_t kMostSide = int64_t{1} << 30;  // positions within an image are 32-bit, offsets 64-bit

// The device and stream of an operator, from its first tensor until the end of the call.
class Place {
 public:
  explicit Place(const Tensor& t) {
    STD_TORCH_CHECK(&aoti_torch_get_current_cuda_stream != nullptr,
                    "this torch has no CUDA runtime (libtorch_cuda was not found through libtorch.so)");
    if (t.is_cuda()) guard_.emplace(t.get_device_index());
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  cudaStream_t stream_;
};

inline void check_launch(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

inline Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half:
      return Type::float16;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    case ScalarType::Byte:
      return Type::uint8;
    case ScalarType::Long:
      return Type::int64;
    default:
      return Type::float32;
  }
}

inline Map map_of(const Tensor& t) {
  STD_TORCH_CHECK(t.size(2) < kMostSide && t.size(3) < kMostSide, "found shape ", shape_of(t),
                  ", expected sides below 2^30");
  return {t.const_data_ptr(),
          {t.stride(0), t.stride(1), t.stride(2), t.stride(3)},
          static_cast<int32_t>(t.size(2)),
          static_cast<int32_t>(t.size(3)),
          type_of(t)};
}

inline Labels labels_of(const Tensor& contiguous) {
  return {contiguous.const_data_ptr(), type_of(contiguous)};
}

// Dense [N, H, W] or [C] values; only what is not contiguous is copied.
inline std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(torch::stable::contiguous(*t)) : std::nullopt;
}

template <class T>
const T* data_of(const std::optional<Tensor>& contiguous) {
  return contiguous ? contiguous->const_data_ptr<T>() : nullptr;
}

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& size, ScalarType type) {
  return torch::stable::new_empty(like, size, type);
}

inline Tiling tiling_of(int64_t samples, const std::vector<int64_t>& size, bool align_corners) {
  STD_TORCH_CHECK(size[0] < kMostSide && size[1] < kMostSide, "size: found ", size[0], " by ", size[1],
                  ", expected sides below 2^30");
  Tiling tiling{};
  tiling.samples = samples;
  tiling.height = static_cast<int32_t>(size[0]);
  tiling.width = static_cast<int32_t>(size[1]);
  tiling.align_corners = align_corners;
  return tiling;
}

inline int64_t tiles_of(const Tiling& tiling) { return tiling.samples * tiling.down * tiling.across; }

}  // namespace cuda
}  // namespace udas
