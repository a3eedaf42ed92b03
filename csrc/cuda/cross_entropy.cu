// Cross-entropy. Its pixel function, per class: 1 exp, 10 FMAs and the like (3 interpolations; maximum, the
// label's logit, difference and scale before the exp, sum, gradient, the label's one).
#include "loss.cuh"

namespace udas {
namespace cuda {

template cudaError_t run_loss<CrossEntropy>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
