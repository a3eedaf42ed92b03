// KL of the teachers' mean to the student. Its pixel function, per class: 1 + K exps and 1 log, 14 + 10·K
// FMAs and the like. Teachers have no gradient and keep no registers: each is read anew at each pixel, 4
// loads a class through L1, and with more than one teacher these loads are the floor.
#include "loss.cuh"

namespace udas {
namespace cuda {
namespace {

struct DistillationKl {
  static constexpr int kMaps = 1, kScratch = 2, kMostInRegisters = 19;
  static constexpr bool kLabels = false, kCountsLabels = false, kTeachers = true;
  template <bool kGrad, class Count, class Logits, class Gradient, class Teachers>
  UDAS_DEVICE static float run(const LossTask& task, const Pixel& pixel, Count classes, const Logits* logits,
                               Gradient* gradient, const Teachers& teachers) {
    return distillation_kl_pixel<kGrad, float>(logits[0], teachers, task.teachers, task.inverse_temperature,
                                               pixel.weight, classes, gradient[0], gradient[1]);
  }
};

}  // namespace

cudaError_t run_distillation_kl(const LossTask& task, cudaStream_t stream) {
  return run_loss<DistillationKl>(task, stream);
}

}  // namespace cuda
}  // namespace udas
