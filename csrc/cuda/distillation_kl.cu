// KL of the teachers' mean to the student. Its pixel function, per class: 1 + K exps and 1 log, 9 + 8·K FMAs
// and the like, and K/2 loads of shared memory, where the rows of the teachers are.
#include "loss.cuh"

namespace udas {
namespace cuda {

template <>
constexpr int kMostInRegisters<DistillationKl> = 19;
template cudaError_t run_loss<DistillationKl>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
