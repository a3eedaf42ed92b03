#pragma once
// The operators on CUDA, for front.h, and what their files share: from torch's tensors to the plain types of
// task.h. Nothing here needs libtorch_cuda at link time, and nothing allocates but through torch, so that
// CUDA graphs can capture it.
#ifndef USE_CUDA
#define USE_CUDA  // without it shim.h does not declare the stream
#endif
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../front.h"
#include "task.h"

#if defined(__GNUC__)  // absent from a CPU-only torch: weak, so that the extension still imports there
#pragma weak aoti_torch_get_current_cuda_stream
#endif

namespace udas {
namespace cuda {

// The device of a tensor, current until the end of the call, and its stream.
class StreamGuard {
 public:
  explicit StreamGuard(const Tensor& t) {
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

using LossKernel = cudaError_t (*)(const LossTask&, cudaStream_t);

class Device {
 public:
  explicit Device(const Tensor& first) : guard_(first) {}

  template <class Loss>
  void loss(const LossArguments& in, LossResults& out) const {
    run(in, out, cuda::run_loss<Loss>, Loss::kScratch);
  }
  void upsample_backward(const LossArguments& in, LossResults& out) const {
    run(in, out, run_upsample_backward, 1);
  }
  void upsample(const Tensor& logits, Activation activation, bool align_corners, Tensor& out) const;
  void pseudo_label(const PseudoLabelArguments& in, PseudoLabelResults& out) const;
  void confusion_matrix(const Tensor& logits, const Tensor& target, int64_t ignore_index, bool align_corners,
                        Tensor& counts) const;
  void region_mix(const MixArguments& in, MixResults& out) const;

 private:
  void run(const LossArguments& in, LossResults& out, LossKernel kernel, int scratch) const;

  StreamGuard guard_;
};

inline void check_launch(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

inline Map map_of(const Tensor& t) {
  return {t.const_data_ptr(),
          {t.stride(0), t.stride(1), t.stride(2), t.stride(3)},
          static_cast<int32_t>(t.size(2)),
          static_cast<int32_t>(t.size(3)),
          type_of(t)};
}

inline Labels labels_of(const Tensor& contiguous) {
  return {contiguous.const_data_ptr(), type_of(contiguous)};
}

inline Tiling tiling_of(int64_t samples, int64_t height, int64_t width, bool align_corners) {
  Tiling tiling{};
  tiling.samples = samples;
  tiling.height = static_cast<int32_t>(height);
  tiling.width = static_cast<int32_t>(width);
  tiling.align_corners = align_corners;
  return tiling;
}

inline int64_t tiles_of(const Tiling& tiling) { return tiling.samples * tiling.down * tiling.across; }

}  // namespace cuda
}  // namespace udas
