// The CPU kernels for AVX2 and FMA.
#define UDAS_ISA avx2
#define UDAS_SIMD_WIDTH 8
#include "isa_begin.h"
#ifdef UDAS_X86_ISAS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#include "kernels.h"

namespace udas {
namespace cpu {
extern const Kernels avx2_kernels;
const Kernels avx2_kernels = kKernels;
}  // namespace cpu
}  // namespace udas
#pragma GCC pop_options
#endif
