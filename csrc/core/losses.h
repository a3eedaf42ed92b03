#pragma once
// The losses: the mathematics of every loss operator, once, for host and device.
//
// A pixel function takes the logits of one pixel (or one vector of pixels: V) and returns the pixel's loss
// before weighting; with kGrad it leaves weight · dloss/dlogits in the gradient accessors. `u[c]`, `v[c]`
// give class c's logit as V; `gu[c]`, `gv[c]` are V& and serve as scratch even without kGrad. `classes` is an
// int or an integral_constant, which unrolls the loops and keeps the arrays in registers. The exponentials
// are taken of scores, which are logits less a value that the classes of a pixel share.
//
// The struct below each function describes the loss to the loops of cpu/ and cuda/, whose pixel `px` has
//   logits(m)      the logits of map m
//   gradient(i)    the i-th scratch array; the first kMaps arrays are the gradients of the maps
//   teacher(k)     the logits of teacher k, of teachers() teachers
//   target()       the values of the teacher, of a loss with kTargets
//   with_target(f) f(target()), or f(the label's one-hot vector) where there is no teacher
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
  static constexpr bool kTargets = false;   // its one teacher has values in place of logits
  static constexpr bool kScores = true;     // a function of scores: what classes share does not matter
};

template <class V, class Logits>
UDAS_HD V largest(const Logits& v, int classes) {
  V top = v[0];
  UDAS_UNROLL
  for (int c = 1; c < classes; ++c) top = larger(V(v[c]), top);
  return top;
}

// Accessors whose values are scores over the temperature already, in units of log 2: those of cuda/, which
// shift and scale low-resolution rows instead of pixels.
template <class Logits, class = void>
constexpr bool kGivesScores = false;
template <class Logits>
constexpr bool kGivesScores<Logits, std::enable_if_t<Logits::kGivesScores> > = true;

// The scores of a pixel: what all its classes share is taken off the logits, here their maximum.
template <class V, class Logits>
class Scores {
 public:
  UDAS_HD Scores(const Logits& logits, int classes, float inverse_temperature)
      : logits_(logits), inverse_temperature_(inverse_temperature) {
    if constexpr (!kGivesScores<Logits>) top_ = largest<V>(logits, classes);
  }

  UDAS_HD V operator[](int c) const {
    if constexpr (kGivesScores<Logits>) return logits_[c];
    return V(logits_[c]) - top_;
  }

  // exp of a score over the temperature.
  UDAS_HD V exponential(V score) const {
    if constexpr (kGivesScores<Logits>) return exp2(score);
    return exp2(V(score * (inverse_temperature_ * kLog2E)));
  }

  // What a difference of 1 between scores is in logits over the temperature.
  UDAS_HD float unit() const { return kGivesScores<Logits> ? 0.693147181f : inverse_temperature_; }

 private:
  const Logits& logits_;
  const float inverse_temperature_;
  V top_;
};

template <class V, class Logits>
UDAS_HD Scores<V, Logits> scores(const Logits& logits, int classes, float inverse_temperature = 1.0f) {
  return {logits, classes, inverse_temperature};
}

// g[c] = exp of score c; returns the sum, so that softmax = g / sum. g may be the logits, unless they are
// scores.
template <class V, class Logits, class Scratch>
UDAS_HD V exponentials(const Scores<V, Logits>& x, int classes, Scratch& g) {
  V sum = V{};
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V e = x.exponential(x[c]);
    g[c] = e;
    sum += e;
  }
  return sum;
}

// -log softmax(v)[label]; 0 with a zero gradient where label < 0. g may be v, unless v gives scores. Least: 4
// and 1 exp [6, 1]; the label is one element, and the gradient's scale belongs to the adjoint's factors.
template <bool kGrad, class V, class Logits, class Grad>
UDAS_HD V cross_entropy_pixel(const Logits& v, IntOf<V> label, V weight, int classes, Grad& g) {
  const auto x = scores<V>(v, classes);
  V sum = V{}, picked = V{};
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V score = x[c], e = x.exponential(score);
    picked = select(label == c, score, picked);
    g[c] = e;
    sum += e;
  }
  if (kGrad) {
    const V scale = divide(weight, sum);
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) g[c] = g[c] * scale - select(label == c, weight, V{});
  }
  return select(label < 0, V{}, log(sum) - picked * x.unit());
}

struct CrossEntropy : Loss<1> {
  static constexpr bool kLabels = true, kCountsLabels = true;
  template <bool kGrad, class V, class Pixel>
  UDAS_HD static V run(const Pixel& px) {
    auto&& g = px.gradient(0);
    return cross_entropy_pixel<kGrad, V>(px.logits(0), px.label, px.weight, px.classes(), g);
  }
};

// J = KL(p‖q) + KL(q‖p) = Σ (p - q)·d, d = u - v, p = softmax u, q = softmax v. A value that all d share
// changes no sum. dJ/du = (p - q) + p·(d - Σpd) = p·(d + 1 - Σpd) - q, dJ/dv = q·(1 + Σqd - d) - p. Least: 11
// and 2 exps [21, 2]; d and both sums 3, the gradients 6.
template <bool kGrad, class V, class LogitsU, class LogitsV, class GradU, class GradV>
UDAS_HD V symmetric_kl_pixel(const LogitsU& u, const LogitsV& v, V weight, int classes, GradU& gu,
                             GradV& gv) {
  const auto x = scores<V>(u, classes);
  const auto y = scores<V>(v, classes);
  const float unit = x.unit();
  V sum_u = V{}, sum_v = V{}, mean_p = V{}, mean_q = V{};  // mean: Σpd, Σqd
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V score_u = x[c], score_v = y[c], d = score_u - score_v;
    const V e = x.exponential(score_u), f = y.exponential(score_v);
    gu[c] = e;
    gv[c] = f;
    sum_u += e;
    sum_v += f;
    mean_p += e * d;
    mean_q += f * d;
  }
  mean_p = divide(mean_p, sum_u) * unit;
  mean_q = divide(mean_q, sum_v) * unit;
  if (kGrad) {
    const V scale_u = divide(weight, sum_u), scale_v = divide(weight, sum_v);
    const V to_u = 1.0f - mean_p, to_v = 1.0f + mean_q;
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) {
      const V d = x[c] - y[c];
      const V p = gu[c] * scale_u, q = gv[c] * scale_v;
      gu[c] = p * (unit * d + to_u) - q;
      gv[c] = q * (to_v - unit * d) - p;
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

// KL(m‖p) + KL(m‖q), m = softmax(z), z = u + v/2, held constant (MRNet): the gradients are p - m and q - m.
// With the three sums of exponentials the loss is Σ m·(2z - u - v) - 2·log Σexp z + log Σexp u + log Σexp v,
// and 2z - u - v = u. Least: 13 and 3 exps [20, 3]; Σ m·u 1, the gradients 3.
template <bool kGrad, class V, class LogitsU, class LogitsV, class GradU, class GradV>
UDAS_HD V ensemble_kl_pixel(const LogitsU& u, const LogitsV& v, V weight, int classes, GradU& gu, GradV& gv) {
  const auto x = scores<V>(u, classes);
  const auto y = scores<V>(v, classes);
  const auto z = [&](int c) { return V(x[c] + 0.5f * y[c]); };
  V top = z(0);
  UDAS_UNROLL
  for (int c = 1; c < classes; ++c) top = larger(z(c), top);
  V sum_u = V{}, sum_v = V{}, sum_z = V{}, cross = V{};  // cross: Σ exp(z)·u
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V score = x[c];
    const V e = x.exponential(score), f = y.exponential(y[c]);
    const V m = x.exponential(z(c) - top);
    gu[c] = e;
    gv[c] = f;
    sum_u += e;
    sum_v += f;
    sum_z += m;
    cross += m * score;
  }
  if (kGrad) {
    const V scale_u = divide(weight, sum_u), scale_v = divide(weight, sum_v);
    const V scale_z = divide(weight, sum_z);
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) {
      const V m = x.exponential(z(c) - top) * scale_z;
      gu[c] = gu[c] * scale_u - m;
      gv[c] = gv[c] * scale_v - m;
    }
  }
  return (divide(cross, sum_z) - 2.0f * top) * x.unit() - 2.0f * log(sum_z) + log(sum_u) + log(sum_v);
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
    const V sum = exponentials(scores<V>(teacher, classes, inverse_temperature), classes, scratch);
    const V share = divide(V{} + 1.0f, V(sum * static_cast<float>(count)));
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) gu[c] += scratch[c] * share;
  }
  const auto x = scores<V>(u, classes, inverse_temperature);
  const V sum = exponentials(x, classes, scratch);
  V loss = log(sum);
  const V scale = divide(V{} + 1.0f, sum);
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V m = gu[c];
    const V own = log(select(m > 1e-37f, m, V{} + 1e-37f));
    loss += m * (own - x[c] * x.unit());
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

// The label's one-hot vector by class.
template <class V>
struct OneHot {
  IntOf<V> label;
  UDAS_HD V operator[](int c) const { return select(label == c, V{} + 1.0f, V{}); }
};

// −Σ q·log p, p = softmax u, q any values, held constant: the gradient is p·Σq - q. Least: 6 and 1 exp [8,
// 1]; q's interpolation 1, Σ q·u 1, Σq known where q are probabilities; the gradient 1. `q` may not be u.
template <bool kGrad, class V, class Logits, class Target, class Grad>
UDAS_HD V soft_cross_entropy_pixel(const Logits& u, const Target& q, V weight, int classes, Grad& g) {
  const auto x = scores<V>(u, classes);
  const V sum = exponentials(x, classes, g);
  V mass = V{}, cross = V{};  // Σ q, Σ q·u
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    mass += V(q[c]);
    cross += V(q[c]) * x[c];
  }
  if (kGrad) {
    const V scale = divide(V(weight * mass), sum);
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) g[c] = g[c] * scale - weight * V(q[c]);
  }
  return mass * log(sum) - cross * x.unit();
}

struct SoftCrossEntropy : Loss<1> {
  static constexpr int kScratch = 2;
  static constexpr bool kTeachers = true, kTargets = true;
  template <bool kGrad, class V, class Pixel>
  UDAS_HD static V run(const Pixel& px) {
    auto&& g = px.gradient(0);
    return soft_cross_entropy_pixel<kGrad, V>(px.logits(0), px.target(), px.weight, px.classes(), g);
  }
};

// Σ (p - q)², p = softmax u, q held constant: du = 2p·((p - q) - Σ p·(p - q)). q is the teacher's values
// where there is one, the label's one-hot vector elsewhere. Least: 8 and 1 exp [11, 1]; q's interpolation and
// the difference 2, the two sums 2; the gradient 2. `q` may not be u.
template <bool kGrad, class V, class Logits, class Target, class Grad>
UDAS_HD V squared_error_pixel(const Logits& u, const Target& q, V weight, int classes, Grad& g) {
  const V inverse = divide(V{} + 1.0f, exponentials(scores<V>(u, classes), classes, g));
  V loss = V{}, mean = V{};  // Σ (p - q)², Σ p·(p - q)
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V p = g[c] * inverse, d = p - V(q[c]);
    if (kGrad) g[c] = p;
    loss += d * d;
    mean += p * d;
  }
  if (kGrad) {
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) {
      const V p = g[c], d = p - V(q[c]);
      g[c] = 2.0f * weight * p * (d - mean);
    }
  }
  return loss;
}

struct SquaredError : Loss<1> {
  static constexpr int kScratch = 2;
  static constexpr bool kLabels = true;  // where there is no teacher
  static constexpr bool kTeachers = true, kTargets = true;
  template <bool kGrad, class V, class Pixel>
  UDAS_HD static V run(const Pixel& px) {
    auto&& g = px.gradient(0);
    return px.with_target([&](const auto& q) {
      return squared_error_pixel<kGrad, V>(px.logits(0), q, px.weight, px.classes(), g);
    });
  }
};

// CE(u, label)·exp(-var) + var, var = KL(q‖p), p = softmax u (primary), q = softmax v (auxiliary); CE is 0
// where label < 0. With E = exp(-var) and r = 1 - CE·E: d/du = E·(p - onehot) + r·(p - q), d/dv = r·q·(log q
// - log p - var) (Zheng and Yang, "Rectifying Pseudo Label Learning", eq. 8). Least: 10 and 2 exps [18, 2];
// the difference and its sum 2, the gradients 4.
template <bool kGrad, class V, class LogitsU, class LogitsV, class GradU, class GradV>
UDAS_HD V rectified_cross_entropy_pixel(const LogitsU& u, const LogitsV& v, IntOf<V> label, V weight,
                                        int classes, GradU& gu, GradV& gv) {
  const auto x = scores<V>(u, classes);
  const auto y = scores<V>(v, classes);
  const float unit = x.unit();
  V sum_u = V{}, sum_v = V{}, picked = V{}, cross = V{};  // cross: Σ exp(v)·(v - u)
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V score_u = x[c], score_v = y[c];
    const V e = x.exponential(score_u), f = y.exponential(score_v);
    picked = select(label == c, score_u, picked);
    gu[c] = e;
    gv[c] = f;
    sum_u += e;
    sum_v += f;
    cross += f * (score_v - score_u);
  }
  const V gap = log(sum_u) - log(sum_v);
  const V variance = divide(cross, sum_v) * unit + gap;
  const V entropy = select(label < 0, V{}, log(sum_u) - picked * unit);
  const V certainty = exp(-variance);
  if (kGrad) {
    const V rest = weight * (1.0f - entropy * certainty);
    const V kept = select(label < 0, V{}, weight * certainty);
    const V scale_p = divide(kept + rest, sum_u), scale_q = divide(rest, sum_v);
    const V to_v = gap - variance;
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) {
      const V p = gu[c] * scale_p, q = gv[c] * scale_q;
      const V d = y[c] - x[c];
      gu[c] = p - q - select(label == c, kept, V{});
      gv[c] = q * (unit * d + to_v);
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
  const auto x = scores<V>(v, classes);
  V sum = V{}, cross = V{};
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) {
    const V score = x[c], e = x.exponential(score);
    g[c] = e;
    sum += e;
    cross += e * score;
  }
  const V mean = divide(cross, sum);
  if (kGrad) {
    const V scale = divide(V(weight * inverse_log_classes * x.unit()), sum);
    const V middle = scale * mean;
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) g[c] = g[c] * (middle - scale * x[c]);  // log p + H' = v - mean
  }
  return (log(sum) - mean * x.unit()) * inverse_log_classes;
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
