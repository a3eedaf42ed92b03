#pragma once
// How the code of core/ is compiled: by nvcc for host and device, or by the host compiler once per
// instruction set. UDAS_ISA names the inline namespace, so that no two instruction sets share a symbol.

#ifndef UDAS_ISA
#define UDAS_ISA portable
#endif
#define UDAS_BEGIN \
  namespace udas { \
  inline namespace UDAS_ISA {
#define UDAS_END \
  }              \
  }

#ifdef __CUDACC__
#define UDAS_HD __host__ __device__ __forceinline__
#define UDAS_UNROLL _Pragma("unroll")
#else
#define UDAS_HD inline __attribute__((always_inline))
#define UDAS_UNROLL
#endif
