#pragma once
// exp, log and select for a value V: a float (one pixel) or a vector of floats (one pixel a lane).
// The host's polynomials are within 2 units in the last place and keep a NaN a NaN; -ffast-math would break
// them.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "config.h"
#if defined(UDAS_SIMD_WIDTH) && defined(__x86_64__)
#include <immintrin.h>
#endif

UDAS_BEGIN

// The integer beside a value type: labels, and the bits of a float.
template <class V>
struct Lanes;
template <>
struct Lanes<float> {
  using Int = int32_t;
};
template <class V>
using IntOf = typename Lanes<V>::Int;

// An instruction of a GPU's special-function unit; a test that runs the kernels on the CPU sets another.
#ifndef UDAS_SPECIAL
#define UDAS_SPECIAL(name, to, from) asm(name ".approx.ftz.f32 %0, %1;" : "=f"(to) : "f"(from))
#endif

UDAS_HD float select(bool mask, float a, float b) { return mask ? a : b; }
UDAS_HD int32_t select(bool mask, int32_t a, int32_t b) { return mask ? a : b; }
UDAS_HD float to_float(int32_t n) { return static_cast<float>(n); }

#ifdef UDAS_SIMD_WIDTH  // set in cpu/ only
typedef float Vec __attribute__((vector_size(4 * UDAS_SIMD_WIDTH)));
typedef int32_t VecInt __attribute__((vector_size(4 * UDAS_SIMD_WIDTH)));
template <>
struct Lanes<Vec> {
  using Int = VecInt;
};
UDAS_HD Vec select(VecInt mask, Vec a, Vec b) { return mask ? a : b; }
UDAS_HD VecInt select(VecInt mask, VecInt a, VecInt b) { return mask ? a : b; }
UDAS_HD Vec to_float(VecInt n) { return __builtin_convertvector(n, Vec); }
#endif

// The larger of two; a NaN in `a` is passed over, one in `b` stays.
template <class V>
UDAS_HD V larger(V a, V b) {
#ifdef __CUDA_ARCH__
  return fmaxf(a, b);  // one instruction; passes over any NaN, which the exp of it brings back
#else
  return select(a > b, a, b);
#endif
}
#if defined(UDAS_SIMD_WIDTH) && \
    defined(__x86_64__)  // the one instruction, which GCC does not see in the select
UDAS_HD Vec larger(Vec a, Vec b) {
#if UDAS_SIMD_WIDTH == 16
  return _mm512_mask_max_ps(a, 0xffff, a, b);  // GCC 12 calls the operand of _mm512_max_ps uninitialised
#elif UDAS_SIMD_WIDTH == 8
  return _mm256_max_ps(a, b);
#else
  return _mm_max_ps(a, b);
#endif
}
#endif

template <class To, class From>
UDAS_HD To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits: the sizes must agree");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

constexpr float kLog2E = 1.44269504f;

// 2^x for x up to 127, as 2^n · 2^f with n = round(x), |f| <= 1/2. Below -126 the host stays at 2^-126, the
// device goes to 0.
template <class V>
UDAS_HD V exp2(V x) {
#ifdef __CUDA_ARCH__
  float y;
  UDAS_SPECIAL("ex2", y, x);
  return y;
#else
  x = larger(V{} - 126.0f, x);
  const V magic = V{} + (12582912.0f + 127.0f);  // 1.5 · 2^23: adding it rounds; 127: the exponent's bias
  const V shifted = x + magic;                   // n + 127 in its low bits
  const V f = x - (shifted - magic);
  V p = f * 0.0013264657f + 0.0096715661f;
  p = p * f + 0.055507343f;
  p = p * f + 0.24022241f;
  p = p * f + 0.69314700f;
  p = p * f + 1.0f;
  return p * bits<V>(bits<IntOf<V> >(shifted) << 23);
#endif
}

template <class V>
UDAS_HD V exp(V x) {
  return exp2(V(x * kLog2E));
}

// a / b of a normal b below 2^126; on the device within 2 units in the last place, and without the branch for
// other b.
template <class V>
UDAS_HD V divide(V a, V b) {
#ifdef __CUDA_ARCH__
  float inverse;
  UDAS_SPECIAL("rcp", inverse, b);
  return a * inverse;
#else
  return a / b;
#endif
}

// ln x of a normal x > 0: x = 2^n · m with m in [sqrt 1/2, sqrt 2), ln m = 2 artanh((m - 1) / (m + 1)). On
// the device within 2e-7, or 2e-7 of itself where that is more: a sum of exponentials is not known better.
template <class V>
UDAS_HD V log(V x) {
#ifdef __CUDA_ARCH__
  float y;
  UDAS_SPECIAL("lg2", y, x);
  return y * 0.693147181f;
#else
  using Int = IntOf<V>;
  const Int raw = bits<Int>(x);
  const Int n = (raw - 0x3f3504f3) >> 23;  // 0x3f3504f3: sqrt 1/2
  const V m = bits<V>(raw - (n << 23));
  const V s = (m - 1.0f) / (m + 1.0f);
  const V t = s * s;
  const V series = (((t * 0.22222222f + 0.28571429f) * t + 0.4f) * t + 0.66666667f) * t;
  return to_float(n) * 0.693147181f + (s * series + 2.0f * s) + (x - x);  // x - x carries a NaN
#endif
}

UDAS_END
