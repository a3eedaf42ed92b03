#pragma once
// The operators on the CPU, for front.h, and what their files share: from torch's tensors to the plain types
// of task.h, and the loop over threads.
#include "../front.h"
#include "task.h"

namespace udas {
namespace cpu {

class Device {
 public:
  explicit Device(const Tensor&) {}

  template <class Loss>
  void loss(const LossArguments& in, LossResults& out) const {
    run(in, out, kernels().losses[index_of<Loss>(AllLosses{})]);
  }
  void upsample_backward(const LossArguments& in, LossResults& out) const {
    run(in, out, kernels().upsample_backward);
  }
  void upsample(const Tensor& logits, Activation activation, bool align_corners, Tensor& out) const;
  void pseudo_label(const PseudoLabelArguments& in, PseudoLabelResults& out) const;
  void confusion_matrix(const Tensor& logits, const Tensor& target, int64_t ignore_index, bool align_corners,
                        Tensor& counts) const;
  void region_mix(const MixArguments& in, MixResults& out) const;

 private:
  static void run(const LossArguments& in, LossResults& out, LossKernel kernel);
};

inline Map map_of(const Tensor& t) {
  return {t.const_data_ptr(),
          type_of(t),
          t.size(0),
          t.size(1),
          t.size(2),
          t.size(3),
          {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}};
}

inline Plane plane_of(const Optional& t) {
  if (!t) return {};
  return {t->const_data_ptr(), type_of(*t), {t->stride(0), t->stride(1), t->stride(2)}};
}

// body(begin, end) over [0, count) on torch's own threads.
template <class Body>
void parallel(int64_t count, int64_t grain, const Body& body) {
  if (count > 0) torch::stable::parallel_for(0, count, grain, body);
}

inline void check_bad_label(const char* name, const std::atomic<int64_t>& bad_label, int64_t classes,
                            int64_t ignored) {
  STD_TORCH_CHECK(bad_label == kNoLabel, name, ": found label ", bad_label.load(), ", expected 0 to ",
                  classes - 1, " or the ignored ", ignored);
}

}  // namespace cpu
}  // namespace udas
