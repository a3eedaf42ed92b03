// The gradient of upsample, as that of the loss Σ G·activation(logits), G the incoming gradient. Its pixel
// function, per class: for softmax 1 exp, 6 FMAs and the like and 2 loads of G, the second from L1; it reads
// the 4·P·C bytes of G, which bound it.
#include "../core/upsample.h"
#include "loss.cuh"

namespace udas {
namespace cuda {

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
