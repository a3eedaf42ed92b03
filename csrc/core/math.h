#pragma once
// exp, log and select for a value V: a float (one pixel) or a vector of floats (one pixel a lane).
// The host's polynomials are within 2 units in the last place and keep a NaN a NaN; -ffast-math would break
// them.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "config.h"

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

UDAS_HD float select(bool mask, float a, float b) { return mask ? a : b; }
UDAS_HD int32_t select(bool mask, int32_t a, int32_t b) { return mask ? a : b; }
UDAS_HD float to_float(int32_t n) { return static_cast<float>(n); }

#ifdef UDAS_SIMD_WIDTH  // set by csrc/cpu/ alone
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
  return select(a > b, a, b);
}

template <class To, class From>
UDAS_HD To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits: the sizes must agree");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// e^x = 2^n · e^r, n = round(x / ln 2), |r| <= ln 2 / 2. Below -87 the host stays at 1.6e-38, the device goes
// to 0.
template <class V>
UDAS_HD V exp(V x) {
#ifdef __CUDA_ARCH__
  return __expf(x);
#else
  using Int = IntOf<V>;
  const V low = V{} - 87.0f, high = V{} + 88.0f;
  x = select(x < low, low, x);
  x = select(x > high, high, x);
  const V magic = V{} + 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer in the low bits
  const V shifted = x * 1.44269504f + magic;
  const V n = shifted - magic;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V q = r * 0.0013814596f + 0.0083687175f;
  q = q * r + 0.041668389f;
  q = q * r + 0.16666521f;
  q = q * r + 0.49999994f;
  const V p = (q * r) * r + r + 1.0f;
  return p * bits<V>((bits<Int>(shifted) - bits<Int>(magic) + 127) << 23);
#endif
}

// ln x of a normal x > 0: x = 2^n · m with m in [sqrt 1/2, sqrt 2), ln m = 2 artanh((m - 1) / (m + 1)).
template <class V>
UDAS_HD V log(V x) {
#ifdef __CUDA_ARCH__
  return logf(x);
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
