// Cross-entropy to probabilities. Its pixel function, per class: 1 exp, 12 FMAs and the like. The
// rows of the probabilities are kept in shared memory (SharedRows).
#include "loss.cuh"

namespace udas {
namespace cuda {

template <>
constexpr int kMostInRegisters<SoftCrossEntropy> = 19;
template cudaError_t run_loss<SoftCrossEntropy>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
