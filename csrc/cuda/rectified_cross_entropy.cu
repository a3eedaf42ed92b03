// Rectified cross-entropy. Its pixel function, per class: 2 exps, 30 FMAs and the like (8 interpolations;
// twice maximum, difference, scale and sum; the label's logit, Σ exp(v)·(v - u); 5 for each gradient).
#include "loss.cuh"

namespace udas {
namespace cuda {

template cudaError_t run_loss<RectifiedCrossEntropy>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
