// KL of the ensemble to both heads. Its pixel function, per class: 4 exps (3 without gradient), 34 FMAs and
// the like (10 interpolations; three maxima, differences, scales and sums; Σm·(2z - u - v); both gradients).
#include "loss.cuh"

namespace udas {
namespace cuda {

template cudaError_t run_loss<EnsembleKl>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
