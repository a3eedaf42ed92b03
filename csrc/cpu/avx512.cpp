// The CPU kernels for AVX-512.
#define UDAS_ISA avx512
#define UDAS_SIMD_WIDTH 16
#include "isa_begin.h"
#ifdef UDAS_X86_ISAS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#include "kernels.h"

namespace udas {
namespace cpu {
extern const Kernels avx512_kernels;
const Kernels avx512_kernels = kKernels;
}  // namespace cpu
}  // namespace udas
#pragma GCC pop_options
#endif
