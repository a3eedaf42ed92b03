#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace udas {
namespace {

Isa detect() {
  Isa best = Isa::baseline;
#ifdef UDAS_X86_ISAS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    best = Isa::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      best = Isa::avx512;
    }
  }
  const char* chosen = std::getenv("UDAS_FAST_SIMD");
  if (chosen != nullptr && std::strcmp(chosen, "baseline") == 0) return Isa::baseline;
  if (chosen != nullptr && std::strcmp(chosen, "avx2") == 0 && best == Isa::avx512) return Isa::avx2;
#endif
  return best;
}

}  // namespace

Isa isa() {
  static const Isa found = detect();
  return found;
}

const char* isa_name() {
  switch (isa()) {
    case Isa::avx512:
      return "AVX-512";
    case Isa::avx2:
      return "AVX2";
    default:
      return "baseline";
  }
}

}  // namespace udas
