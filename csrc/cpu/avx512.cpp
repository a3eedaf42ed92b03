// The CPU kernels for AVX-512.
#define UDAS_ISA avx512
#define UDAS_SIMD_WIDTH 16
#include "isa_begin.h"
#ifdef UDAS_X86_ISAS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#include "loss_kernel.h"
#include "mix_kernel.h"
#include "predict_kernel.h"
#include "upsample_kernel.h"

namespace udas {
namespace cpu {
extern const Kernels avx512_kernels;
const Kernels avx512_kernels{run_losses, run_upsample, run_predictions, run_mix};
}  // namespace cpu
}  // namespace udas
#pragma GCC pop_options
#endif
