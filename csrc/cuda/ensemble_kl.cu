// KL of the ensemble to both heads. Its pixel function, per class: 4 exps (3 without gradient), 19 FMAs and
// the like (6 interpolations; z three times, its maximum and twice its difference; three sums, Σ e·u; 3 for
// both gradients).
#include "loss.cuh"

namespace udas {
namespace cuda {

template cudaError_t run_loss<EnsembleKl>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
