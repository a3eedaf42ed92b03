// Cross-entropy. Its pixel function, per class: 1 exp, 6 FMAs and the like (interpolation; comparison with
// the label and its score; sum; gradient, the label's one).
#include "loss.cuh"

namespace udas {
namespace cuda {

template cudaError_t run_loss<CrossEntropy>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
