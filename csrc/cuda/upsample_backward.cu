// The way back through upsample: the loss Σ G·activation(logits) of the incoming gradient G. Its pixel
// function, per class: for softmax 1 exp, 10 FMAs and the like and 2 loads of G, the second from L1; it reads
// the 4·P·C bytes of G, which bound it.
#include "../core/upsample.h"
#include "loss.cuh"

namespace udas {
namespace cuda {
namespace {

template <Activation kActivation>
struct UpsampleGradient {
  static constexpr int kMaps = 1, kScratch = 1, kMostInRegisters = 21;
  static constexpr bool kLabels = false, kCountsLabels = false, kTeachers = false;
  template <bool, class Count, class Logits, class Gradient, class Teachers>
  UDAS_DEVICE static float run(const LossTask& task, const Pixel& pixel, Count classes, const Logits* logits,
                               Gradient* gradient, const Teachers&) {
    activation_gradient<kActivation, float>(logits[0], pixel.incoming, task.inverse_log_classes, classes,
                                            gradient[0]);
    return 0.0f;
  }
};

}  // namespace

cudaError_t run_upsample_backward(const LossTask& task, cudaStream_t stream) {
  return with_activation(task.activation, [&](auto activation) {
    using Loss = UpsampleGradient<decltype(activation)::value>;
    return with_classes(task.classes, [&](auto classes) {
      return launch_loss<Loss, decltype(classes)::value, true>(task, stream);
    });
  });
}

}  // namespace cuda
}  // namespace udas
