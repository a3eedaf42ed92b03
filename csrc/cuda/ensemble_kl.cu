// KL of the ensemble to both heads. Its pixel function, per class: 4 exps (3 without gradient), 34 FMAs and
// the like (10 interpolations; three maxima, differences, scales and sums; Σm·(2z - u - v); both gradients).
#include "loss.cuh"

namespace udas {
namespace cuda {
namespace {

struct EnsembleKl {
  static constexpr int kMaps = 2, kScratch = 2, kMostInRegisters = 16;
  static constexpr bool kLabels = false, kCountsLabels = false, kTeachers = false;
  template <bool kGrad, class Count, class Logits, class Gradient, class Teachers>
  UDAS_DEVICE static float run(const LossTask&, const Pixel& pixel, Count classes, const Logits* logits,
                               Gradient* gradient, const Teachers&) {
    return ensemble_kl_pixel<kGrad, float>(logits[0], logits[1], pixel.weight, classes, gradient[0],
                                           gradient[1]);
  }
};

}  // namespace

cudaError_t run_ensemble_kl(const LossTask& task, cudaStream_t stream) {
  return run_loss<EnsembleKl>(task, stream);
}

}  // namespace cuda
}  // namespace udas
