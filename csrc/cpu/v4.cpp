// The CPU kernels for AVX-512.
#define UDAS_LEVEL v4
#define UDAS_SIMD_WIDTH 16
#include "level_begin.h"
#ifdef UDAS_X86_LEVELS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#include "loss_kernel.h"
#include "mix_kernel.h"
#include "predict_kernel.h"
#include "upsample_kernel.h"

namespace udas {
namespace cpu {
extern const Kernels v4_kernels;
const Kernels v4_kernels{run_losses, run_upsample, run_predictions, run_mix};
}  // namespace cpu
}  // namespace udas
#pragma GCC pop_options
#endif
