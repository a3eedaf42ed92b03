// Normalised entropy. Its pixel function, per class: 1 exp, 11 FMAs and the like (4 interpolations; maximum,
// difference and scale before the exp, sum, Σ e·(v - max), 3 for the gradient).
#include "loss.cuh"

namespace udas {
namespace cuda {

template cudaError_t run_loss<Entropy>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
