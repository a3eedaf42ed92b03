#pragma once
// The CPU kernels exist once per instruction set; the best one that this processor has runs.

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define UDAS_X86_LEVELS 1
#endif

namespace udas {

enum class Level { baseline, v3, v4 };

// The processor's level, or a lower one named by UDAS_FAST_SIMD (baseline, v3, v4), read once.
Level level();

// "baseline", "AVX2" or "AVX-512".
const char* simd_level();

}  // namespace udas
