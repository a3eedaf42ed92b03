// Symmetric KL. Its pixel function, per class: 2 exps, 30 FMAs and the like (8 interpolations; twice maximum,
// difference, scale, sum and normalisation; the difference d twice, Σpd, Σqd; 4 for each gradient).
#include "loss.cuh"

namespace udas {
namespace cuda {
namespace {

struct SymmetricKl {
  static constexpr int kMaps = 2, kScratch = 2, kMostInRegisters = 16;
  static constexpr bool kLabels = false, kCountsLabels = false, kTeachers = false;
  template <bool kGrad, class Count, class Logits, class Gradient, class Teachers>
  UDAS_DEVICE static float run(const LossTask&, const Pixel& pixel, Count classes, const Logits* logits,
                               Gradient* gradient, const Teachers&) {
    return symmetric_kl_pixel<kGrad, float>(logits[0], logits[1], pixel.weight, classes, gradient[0],
                                            gradient[1]);
  }
};

}  // namespace

cudaError_t run_symmetric_kl(const LossTask& task, cudaStream_t stream) {
  return run_loss<SymmetricKl>(task, stream);
}

}  // namespace cuda
}  // namespace udas
