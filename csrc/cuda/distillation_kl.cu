// KL of the teachers' mean to the student. Its pixel function, per class: 1 + K exps and 1 log, 14 + 10·K
// FMAs and the like. Teachers have no gradient and keep no registers: each is read anew at each pixel, 4
// loads per class through L1, and with more than one teacher these loads are the floor.
#include "loss.cuh"

namespace udas {
namespace cuda {

template <>
constexpr int kMostInRegisters<DistillationKl> = 19;
template cudaError_t run_loss<DistillationKl>(const LossTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
