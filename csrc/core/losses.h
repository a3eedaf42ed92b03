#pragma once
// The losses: the mathematics of every loss operator, once, for host and device.
//
// A pixel function takes the logits of one pixel (or one vector of pixels: V) and returns the pixel's loss
// before weighting; with kGrad it leaves weight · dloss/dlogits in the gradient accessors. `u[c]`, `v[c]`
// give class c's logit as V; `gu[c]`, `gv[c]` are V& and serve as scratch even without kGrad. `classes` is an
// int or an integral_constant, which unrolls the loops and keeps the arrays in registers. The largest logit
// is subtracted before each exp.
//
// The struct below each function describes the loss to the loops of cpu/ and cuda/, whose pixel `px` has
//   logits(m)      the logits of map m
//   gradient(i)    the i-th scratch array; the first kMaps arrays are the gradients of the maps
//   teacher(k)     the logits of teacher k, of teachers() teachers
//   label          the class, negative where ignored
//   weight         the factor of the gradient
//   classes(), inverse_temperature(), inverse_log_classes()
//
// "Least" is the work per class that benchmarks/ops.py takes for the floor: instructions, exponentials
// (logarithms among them), and in brackets both with the gradient. A map costs its vertical interpolation, 1
// FMA, and the adjoint 2; a softmax a maximum, a shift that scales, an exponential and a sum.
#include <type_traits>

#include "math.h"

UDAS_BEGIN

// Description of a loss: its defaults, for the structs below.
template <int maps>
struct Loss {
  static constexpr int kMaps = maps;      // logit maps with a gradient
  static constexpr int kScratch = maps;   // arrays of one value per class that run() uses
  static constexpr bool kLabels = false;  // reads labels
  static constexpr bool kCountsLabels =
      false;                                // counts labelled pixels by class weight instead of all pixels
  static constexpr bool kTeachers = false;  // has teachers: maps without a gradient
};

template <class V, class Logits>
UDAS_HD V largest(const Logits& v, int classes) {
  V top = v[0];
  UDAS_UNROLL
  for (int c = 1; c < classes; ++c) top = larger(V(v[c]), top);
  return top;
}

// g[c] = exp((v[c] - top)·inverse); returns the sum, so that softmax = g / sum. g may be v.
template <class V, class Logits, class Scratch>
UDAS_HD V exponentials(const Logits& v, V top, int classes, Scratch& g, float inverse = 1.0f) {
  const float scale = inverse * kLog2E;
  V sum = V{};
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V e = exp2(V((V(v[c]) - top) * scale));
    g[c] = e;
    sum += e;
  }
  return sum;
}

// -log softmax(v)[label]; 0 with a zero gradient where label < 0. g may be v. Least: 4 and 1 exp [6, 1]; the
// label is one element, and the gradient's scale belongs to the adjoint's factors.
template <bool kGrad, class V, class Logits, class Grad>
UDAS_HD V cross_entropy_pixel(const Logits& v, IntOf<V> label, V weight, int classes, Grad& g) {
  const V top = largest<V>(v, classes);
  V picked = V{};
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) picked = select(label == c, V(v[c]), picked);
  const V sum = exponentials<V>(v, top, classes, g);
  if (kGrad) {
    const V scale = divide(weight, sum);
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) g[c] = g[c] * scale - select(label == c, weight, V{});
  }
  return select(label < 0, V{}, log(sum) - (picked - top));
}

struct CrossEntropy : Loss<1> {
  static constexpr bool kLabels = true, kCountsLabels = true;
  template <bool kGrad, class V, class Pixel>
  UDAS_HD static V run(const Pixel& px) {
    auto&& g = px.gradient(0);
    return cross_entropy_pixel<kGrad, V>(px.logits(0), px.label, px.weight, px.classes(), g);
  }
};

// J = KL(p‖q) + KL(q‖p) = Σ (p - q)·d, d = u - v, p = softmax u, q = softmax v.
// dJ/du = (p - q) + p·(d - Σpd), dJ/dv = (q - p) + q·(Σqd - d). Least: 11 and 2 exps [21, 2]; d and both sums
// 3, the gradients 6.
template <bool kGrad, class V, class LogitsU, class LogitsV, class GradU, class GradV>
UDAS_HD V symmetric_kl_pixel(const LogitsU& u, const LogitsV& v, V weight, int classes, GradU& gu,
                             GradV& gv) {
  const V top_u = largest<V>(u, classes), top_v = largest<V>(v, classes);
  const V inverse_u = divide(V{} + 1.0f, exponentials<V>(u, top_u, classes, gu));
  const V inverse_v = divide(V{} + 1.0f, exponentials<V>(v, top_v, classes, gv));
  V mean_p = V{},
    mean_q = V{};  // Σpd, Σqd; d is taken between logits less their maxima, which changes no sum
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V d = (V(u[c]) - top_u) - (V(v[c]) - top_v);
    const V p = gu[c] * inverse_u, q = gv[c] * inverse_v;
    gu[c] = p;
    gv[c] = q;
    mean_p += p * d;
    mean_q += q * d;
  }
  if (kGrad) {
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) {
      const V d = (V(u[c]) - top_u) - (V(v[c]) - top_v);
      const V p = gu[c], q = gv[c];
      gu[c] = weight * ((p - q) + p * (d - mean_p));
      gv[c] = weight * ((q - p) + q * (mean_q - d));
    }
  }
  return mean_p - mean_q;
}

struct SymmetricKl : Loss<2> {
  template <bool kGrad, class V, class Pixel>
  UDAS_HD static V run(const Pixel& px) {
    auto &&gu = px.gradient(0), &&gv = px.gradient(1);
    return symmetric_kl_pixel<kGrad, V>(px.logits(0), px.logits(1), px.weight, px.classes(), gu, gv);
  }
};

// KL(m‖p) + KL(m‖q), m = softmax(u + v/2) held constant (MRNet): the gradients are p - m and q - m. Least: 13
// and 3 exps [20, 3]; Σ m·(2z - u - v) is Σ m·u, the gradients 3.
template <bool kGrad, class V, class LogitsU, class LogitsV, class GradU, class GradV>
UDAS_HD V ensemble_kl_pixel(const LogitsU& u, const LogitsV& v, V weight, int classes, GradU& gu, GradV& gv) {
  const V top_u = largest<V>(u, classes), top_v = largest<V>(v, classes);
  V top_z = V(u[0]) + 0.5f * V(v[0]);
  UDAS_UNROLL
  for (int c = 1; c < classes; ++c) top_z = larger(V(u[c]) + 0.5f * V(v[c]), top_z);
  const V sum_u = exponentials<V>(u, top_u, classes, gu);
  const V sum_v = exponentials<V>(v, top_v, classes, gv);
  V sum_z = V{}, cross = V{};  // Σ exp z and Σ exp(z)·(2z - u - v), each less its maximum
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V x = V(u[c]), y = V(v[c]);
    const V z = x + 0.5f * y - top_z;
    const V e = exp(z);
    sum_z += e;
    cross += e * ((z - (x - top_u)) + (z - (y - top_v)));
  }
  if (kGrad) {
    const V scale_u = divide(weight, sum_u), scale_v = divide(weight, sum_v);
    const V scale_z = divide(weight, sum_z);
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) {
      const V m = exp(V(u[c]) + 0.5f * V(v[c]) - top_z) * scale_z;
      gu[c] = gu[c] * scale_u - m;
      gv[c] = gv[c] * scale_v - m;
    }
  }
  return divide(cross, sum_z) - 2.0f * log(sum_z) + log(sum_u) + log(sum_v);
}

struct EnsembleKl : Loss<2> {
  template <bool kGrad, class V, class Pixel>
  UDAS_HD static V run(const Pixel& px) {
    auto &&gu = px.gradient(0), &&gv = px.gradient(1);
    return ensemble_kl_pixel<kGrad, V>(px.logits(0), px.logits(1), px.weight, px.classes(), gu, gv);
  }
};

// KL(m‖p), m = mean_k softmax(t_k / T) held constant, p = softmax(u / T): the gradient is (p - m) / T.
// Least, of two teachers: 16 and 4 exps [19, 4]; 5 a teacher, Σ m·(log m - log p) 2, the gradient 1.
// teachers(k) gives the accessor of teacher k; `scratch` is a second array beside gu and may not be u.
template <bool kGrad, class V, class Logits, class Teachers, class Grad, class Scratch>
UDAS_HD V distillation_kl_pixel(const Logits& u, const Teachers& teachers, int count,
                                float inverse_temperature, V weight, int classes, Grad& gu,
                                Scratch& scratch) {
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) gu[c] = V{};
  for (int k = 0; k < count; ++k) {
    const auto teacher = teachers(k);
    const V top = largest<V>(teacher, classes);
    const V sum = exponentials<V>(teacher, top, classes, scratch, inverse_temperature);
    const V share = divide(V{} + 1.0f, V(sum * static_cast<float>(count)));
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) gu[c] += scratch[c] * share;
  }
  const V top = largest<V>(u, classes);
  const V sum = exponentials<V>(u, top, classes, scratch, inverse_temperature);
  V loss = log(sum);
  const V scale = divide(V{} + 1.0f, sum);
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V m = gu[c];
    const V own = log(select(m > 1e-37f, m, V{} + 1e-37f));
    loss += m * (own - (V(u[c]) - top) * inverse_temperature);
    if (kGrad) gu[c] = weight * inverse_temperature * (scratch[c] * scale - m);
  }
  return loss;
}

struct DistillationKl : Loss<1> {
  static constexpr int kScratch = 2;
  static constexpr bool kTeachers = true;
  template <bool kGrad, class V, class Pixel>
  UDAS_HD static V run(const Pixel& px) {
    auto &&g = px.gradient(0), &&scratch = px.gradient(1);
    const auto teachers = [&](int k) { return px.teacher(k); };
    return distillation_kl_pixel<kGrad, V>(px.logits(0), teachers, px.teachers(), px.inverse_temperature(),
                                           px.weight, px.classes(), g, scratch);
  }
};

// −Σ q·log p, p = softmax u, q any values, held constant: the gradient is p·Σq - q. Least: 6 and 1 exp [8,
// 1]; q's interpolation 1, Σ q·u 1, Σq known where q are probabilities; the gradient 1. `q` may not be u.
template <bool kGrad, class V, class Logits, class Target, class Grad>
UDAS_HD V soft_cross_entropy_pixel(const Logits& u, const Target& q, V weight, int classes, Grad& g) {
  const V top = largest<V>(u, classes);
  const V sum = exponentials<V>(u, top, classes, g);
  V mass = V{}, cross = V{};  // Σ q, Σ q·u
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    mass += V(q[c]);
    cross += V(q[c]) * (V(u[c]) - top);
  }
  if (kGrad) {
    const V scale = divide(V(weight * mass), sum);
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) g[c] = g[c] * scale - weight * V(q[c]);
  }
  return mass * log(sum) - cross;
}

struct SoftCrossEntropy : Loss<1> {
  static constexpr int kScratch = 2;
  static constexpr bool kTeachers = true;  // one: q
  template <bool kGrad, class V, class Pixel>
  UDAS_HD static V run(const Pixel& px) {
    auto&& g = px.gradient(0);
    return soft_cross_entropy_pixel<kGrad, V>(px.logits(0), px.teacher(0), px.weight, px.classes(), g);
  }
};

// Σ (p - q)², p = softmax u, q held constant: du = 2p·((p - q) - Σ p·(p - q)). q is the teacher's values
// where there is one, the label's one-hot vector elsewhere. Least: 8 and 1 exp [11, 1]; q's interpolation and
// the difference 2, the two sums 2; the gradient 2. `q` is left p - q.
template <bool kGrad, class V, class Logits, class Grad, class Target>
UDAS_HD V squared_error_pixel(const Logits& u, V weight, int classes, Grad& g, Target& q) {
  const V top = largest<V>(u, classes);
  const V inverse = divide(V{} + 1.0f, exponentials<V>(u, top, classes, g));
  V loss = V{}, mean = V{};  // Σ (p - q)², Σ p·(p - q)
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V p = g[c] * inverse, d = p - V(q[c]);
    g[c] = p;
    q[c] = d;
    loss += d * d;
    mean += p * d;
  }
  if (kGrad) {
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) g[c] = 2.0f * weight * V(g[c]) * (V(q[c]) - mean);
  }
  return loss;
}

struct SquaredError : Loss<1> {
  static constexpr int kScratch = 2;
  static constexpr bool kLabels = true;    // where there is no teacher
  static constexpr bool kTeachers = true;  // at most one
  template <bool kGrad, class V, class Pixel>
  UDAS_HD static V run(const Pixel& px) {
    auto &&g = px.gradient(0), &&q = px.gradient(1);
    if (px.teachers() > 0) {
      const auto teacher = px.teacher(0);
      UDAS_UNROLL
      for (int c = 0; c < px.classes(); ++c) q[c] = V(teacher[c]);
    } else {
      UDAS_UNROLL
      for (int c = 0; c < px.classes(); ++c) q[c] = select(px.label == c, V{} + 1.0f, V{});
    }
    return squared_error_pixel<kGrad, V>(px.logits(0), px.weight, px.classes(), g, q);
  }
};

// CE(u, label)·exp(-var) + var, var = KL(q‖p), p = softmax u (primary), q = softmax v (auxiliary); CE is 0
// where label < 0. With E = exp(-var) and r = 1 - CE·E: d/du = E·(p - onehot) + r·(p - q), d/dv = r·q·(log q
// - log p - var) (Zheng and Yang, "Rectifying Pseudo Label Learning", eq. 8). Least: 10 and 2 exps [18, 2];
// the difference and its sum 2, the gradients 4.
template <bool kGrad, class V, class LogitsU, class LogitsV, class GradU, class GradV>
UDAS_HD V rectified_cross_entropy_pixel(const LogitsU& u, const LogitsV& v, IntOf<V> label, V weight,
                                        int classes, GradU& gu, GradV& gv) {
  const V top_u = largest<V>(u, classes), top_v = largest<V>(v, classes);
  const V sum_u = exponentials<V>(u, top_u, classes, gu);
  const V sum_v = exponentials<V>(v, top_v, classes, gv);
  const V scale_u = divide(V{} + 1.0f, sum_u), scale_v = divide(V{} + 1.0f, sum_v);
  V picked = V{}, cross = V{};  // cross = Σ exp(v)·(v - u)
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V x = V(u[c]) - top_u;
    picked = select(label == c, x, picked);
    cross += gv[c] * ((V(v[c]) - top_v) - x);
  }
  const V gap = log(sum_u) - log(sum_v);
  const V variance = cross * scale_v + gap;
  const V entropy = select(label < 0, V{}, log(sum_u) - picked);
  const V certainty = exp(-variance);
  if (kGrad) {
    const V rest = weight * (1.0f - entropy * certainty);
    const V kept = select(label < 0, V{}, weight * certainty);
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) {
      const V p = gu[c] * scale_u, q = gv[c] * scale_v;
      const V ratio = (V(v[c]) - top_v) - (V(u[c]) - top_u) + gap;
      gu[c] = kept * (p - select(label == c, V{} + 1.0f, V{})) + rest * (p - q);
      gv[c] = rest * q * (ratio - variance);
    }
  }
  return entropy * certainty + variance;
}

struct RectifiedCrossEntropy : Loss<2> {
  static constexpr bool kLabels = true;
  template <bool kGrad, class V, class Pixel>
  UDAS_HD static V run(const Pixel& px) {
    auto &&gu = px.gradient(0), &&gv = px.gradient(1);
    return rectified_cross_entropy_pixel<kGrad, V>(px.logits(0), px.logits(1), px.label, px.weight,
                                                   px.classes(), gu, gv);
  }
};

// H = -Σ p·log p · inverse_log_classes (MinEnt); dH/dv = -p·(log p + H') · inverse_log_classes, H' unscaled.
// Least: 5 and 1 exp [9, 1]; Σ p·v 1, the gradient 2.
template <bool kGrad, class V, class Logits, class Grad>
UDAS_HD V entropy_pixel(const Logits& v, float inverse_log_classes, V weight, int classes, Grad& g) {
  const V top = largest<V>(v, classes);
  const V sum = exponentials<V>(v, top, classes, g);
  V cross = V{};
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) cross += V(g[c]) * (V(v[c]) - top);
  const V mean = divide(cross, sum), log_sum = log(sum);
  if (kGrad) {
    const V scale = divide(V(weight * inverse_log_classes), sum);
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c)
      g[c] = g[c] * scale * (mean - (V(v[c]) - top));  // log p + H' = v - mean
  }
  return (log_sum - mean) * inverse_log_classes;
}

struct Entropy : Loss<1> {
  template <bool kGrad, class V, class Pixel>
  UDAS_HD static V run(const Pixel& px) {
    auto&& g = px.gradient(0);
    return entropy_pixel<kGrad, V>(px.logits(0), px.inverse_log_classes(), px.weight, px.classes(), g);
  }
};

// ---- every loss ------------------------------------------------------------------------------------------

template <class... Losses>
struct LossList {};
using AllLosses = LossList<CrossEntropy, RectifiedCrossEntropy, SymmetricKl, EnsembleKl, DistillationKl,
                           SoftCrossEntropy, SquaredError, Entropy>;

// The position of a loss in the list, which is its place in a table made from the list.
template <class Searched, class... Losses>
constexpr int index_of(LossList<Losses...>) {
  int before = 0;
  const bool found = ((std::is_same_v<Searched, Losses> || (++before, false)) || ...);
  return found ? before : -1;
}

UDAS_END
