#pragma once
// The CPU kernels exist once per instruction set; the best one that this processor has runs.

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define UDAS_X86_ISAS 1
#endif

namespace udas {

enum class Isa { baseline, avx2, avx512 };

// The processor's instruction set, or a lower one named by UDAS_FAST_SIMD (baseline, avx2), read once.
Isa isa();

// "baseline", "AVX2" or "AVX-512".
const char* isa_name();

}  // namespace udas
