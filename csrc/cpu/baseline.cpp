// The CPU kernels for any processor: vectors of four floats, which SSE2 and NEON have.
#define UDAS_ISA baseline
#define UDAS_SIMD_WIDTH 4
#include "isa_begin.h"
#include "kernels.h"

namespace udas {
namespace cpu {
extern const Kernels baseline_kernels;
const Kernels baseline_kernels = kKernels;
}  // namespace cpu
}  // namespace udas
