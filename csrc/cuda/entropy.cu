// Normalised entropy. Its pixel function, per class: 1 exp, 11 FMAs and the like (4 interpolations; maximum,
// difference and scale before the exp, sum, Σ e·(v - max), 3 for the gradient).
#include "loss.cuh"

namespace udas {
namespace cuda {
namespace {

struct Entropy {
  static constexpr int kMaps = 1, kScratch = 1, kMostInRegisters = 21;
  static constexpr bool kLabels = false, kCountsLabels = false, kTeachers = false;
  template <bool kGrad, class Count, class Logits, class Gradient, class Teachers>
  UDAS_DEVICE static float run(const LossTask& task, const Pixel& pixel, Count classes, const Logits* logits,
                               Gradient* gradient, const Teachers&) {
    return entropy_pixel<kGrad, float>(logits[0], task.inverse_log_classes, pixel.weight, classes,
                                       gradient[0]);
  }
};

}  // namespace

cudaError_t run_entropy(const LossTask& task, cudaStream_t stream) { return run_loss<Entropy>(task, stream); }

}  // namespace cuda
}  // namespace udas
