#include "level.h"

#include <cstdlib>
#include <cstring>

namespace udas {
namespace {

Level detect() {
  Level best = Level::baseline;
#ifdef UDAS_X86_LEVELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    best = Level::v3;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      best = Level::v4;
    }
  }
  const char* wish = std::getenv("UDAS_FAST_SIMD");
  if (wish != nullptr && std::strcmp(wish, "baseline") == 0) return Level::baseline;
  if (wish != nullptr && std::strcmp(wish, "v3") == 0 && best == Level::v4) return Level::v3;
#endif
  return best;
}

}  // namespace

Level level() {
  static const Level found = detect();
  return found;
}

const char* simd_level() {
  switch (level()) {
    case Level::v4:
      return "AVX-512";
    case Level::v3:
      return "AVX2";
    default:
      return "baseline";
  }
}

}  // namespace udas
