// Cross-entropy. Its pixel function, per class: 1 exp, 10 FMAs and the like (3 interpolations; maximum, the
// label's logit, difference and scale before the exp, sum, gradient, the label's one).
#include "loss.cuh"

namespace udas {
namespace cuda {
namespace {

struct CrossEntropy {
  static constexpr int kMaps = 1, kScratch = 1, kMostInRegisters = 21;
  static constexpr bool kLabels = true, kCountsLabels = true, kTeachers = false;
  template <bool kGrad, class Count, class Logits, class Gradient, class Teachers>
  UDAS_DEVICE static float run(const LossTask&, const Pixel& pixel, Count classes, const Logits* logits,
                               Gradient* gradient, const Teachers&) {
    return cross_entropy_pixel<kGrad, float>(logits[0], pixel.label, pixel.weight, classes, gradient[0]);
  }
};

}  // namespace

cudaError_t run_cross_entropy(const LossTask& task, cudaStream_t stream) {
  return run_loss<CrossEntropy>(task, stream);
}

}  // namespace cuda
}  // namespace udas
