// Symmetric KL. Its pixel function, per class: 2 exps, 30 FMAs and the like (8 interpolations; twice maximum,
// difference, scale, sum and normalisation; the difference d twice, Σpd, Σqd; 4 for each gradient).
#include "loss.cuh"

namespace udas {
namespace cuda {

template cudaError_t run_loss<SymmetricKl>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
