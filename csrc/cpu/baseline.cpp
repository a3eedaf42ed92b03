// The CPU kernels for any processor: vectors of four floats, which SSE2 and NEON have.
#define UDAS_ISA baseline
#define UDAS_SIMD_WIDTH 4
#include "isa_begin.h"
#include "loss_kernel.h"
#include "mix_kernel.h"
#include "predict_kernel.h"
#include "upsample_kernel.h"

namespace udas {
namespace cpu {
extern const Kernels baseline_kernels;
const Kernels baseline_kernels{run_losses, run_upsample, run_predictions, run_mix};
}  // namespace cpu
}  // namespace udas
