// Rectified cross-entropy. Its pixel function, per class: 2 exps, 30 FMAs and the like (8 interpolations;
// twice maximum, difference, scale and sum; the label's logit, Σ exp(v)·(v - u); 5 for each gradient).
#include "loss.cuh"

namespace udas {
namespace cuda {
namespace {

struct Rectified {
  static constexpr int kMaps = 2, kScratch = 2, kMostInRegisters = 16;
  static constexpr bool kLabels = true, kCountsLabels = false, kTeachers = false;
  template <bool kGrad, class Count, class Logits, class Gradient, class Teachers>
  UDAS_DEVICE static float run(const LossTask&, const Pixel& pixel, Count classes, const Logits* logits,
                               Gradient* gradient, const Teachers&) {
    return rectified_pixel<kGrad, float>(logits[0], logits[1], pixel.label, pixel.weight, classes,
                                         gradient[0], gradient[1]);
  }
};

}  // namespace

cudaError_t run_rectified(const LossTask& task, cudaStream_t stream) {
  return run_loss<Rectified>(task, stream);
}

}  // namespace cuda
}  // namespace udas
