// Symmetric KL. Its pixel function, per class: 2 exps, 16 FMAs and the like (4 interpolations; two sums;
// twice the difference d, Σpd, Σqd; 6 for both gradients).
#include "loss.cuh"

namespace udas {
namespace cuda {

template cudaError_t run_loss<SymmetricKl>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
