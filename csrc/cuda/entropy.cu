// Normalised entropy. Its pixel function, per class: 1 exp, 6 FMAs and the like (2 interpolations; sum,
// Σ e·v; 2 for the gradient).
#include "loss.cuh"

namespace udas {
namespace cuda {

template cudaError_t run_loss<Entropy>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
