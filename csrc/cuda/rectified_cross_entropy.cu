// Rectified cross-entropy. Its pixel function, per class: 2 exps, 18 FMAs and the like (4 interpolations;
// two sums; the label's score and its comparison; twice v - u, Σ exp(v)·(v - u); 7 for both gradients).
#include "loss.cuh"

namespace udas {
namespace cuda {

template cudaError_t run_loss<RectifiedCrossEntropy>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
