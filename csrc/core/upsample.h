#pragma once
// Activations of upsample at a pixel with scores v, p = softmax(v), and their gradients:
//   none              v[c]
//   softmax           p[c]
//   self_information  -p[c]·log(p[c] + ε) / log C (AdvEnt, Vu et al. 2019, eq. 5)
#include <type_traits>

#include "activation.h"
#include "losses.h"

UDAS_BEGIN

// log ε, ε = 1e-30. log(p + ε) is computed as the larger of log p and log ε. The two differ only below
// p = 1e-23, where every term that uses it is a multiple of p.
constexpr float kLogEpsilon = -69.0775528f;

template <class V>
UDAS_HD V floored(V log_p) {
  return larger(V(V{} + kLogEpsilon), log_p);
}

// out[c] = the activation of class c; out may be v, but for self_information. Least of softmax, as in
// losses.h: 5 and 1 exp.
template <Activation kActivation, class V, class Logits, class Out>
UDAS_HD void activate(const Logits& v, float inverse_log_classes, int classes, Out& out) {
  if constexpr (kActivation == Activation::none) {
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) out[c] = V(v[c]);
  } else {
    const auto x = scores<V>(v, classes);
    const V sum = exponentials(x, classes, out);
    const V scale = divide(V{} + 1.0f, sum), log_sum = log(sum);
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) {
      const V p = out[c] * scale;
      out[c] = kActivation == Activation::softmax
                   ? p
                   : V(-inverse_log_classes * p * floored(V(x[c] * x.unit() - log_sum)));
    }
  }
}

// g[c] = Σ_k G[k] · d activation[k] / dv[c], G the incoming gradient. softmax: p·(G - ΣGp). self_information:
// the same with G·dI/dp for G, dI/dp = -(log(p + ε) + p / (p + ε)) / log C. g may not be G, and v but for
// self_information. Least of softmax: 9 and 1 exp; Σ G·p 1, the gradient 2.
template <Activation kActivation, class V, class Logits, class Incoming, class Grad>
UDAS_HD void activation_gradient(const Logits& v, const Incoming& incoming, float inverse_log_classes,
                                 int classes, Grad& g) {
  if constexpr (kActivation == Activation::none) {
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) g[c] = V(incoming[c]);
  } else {
    const auto x = scores<V>(v, classes);
    const V sum = exponentials(x, classes, g);
    const V scale = divide(V{} + 1.0f, sum), log_sum = log(sum);
    const auto to_probability = [&](int c) {
      if constexpr (kActivation == Activation::softmax) return V(incoming[c]);
      return V(-inverse_log_classes * V(incoming[c]) * (floored(V(x[c] * x.unit() - log_sum)) + 1.0f));
    };
    V mean = V{};
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) mean += to_probability(c) * g[c];
    mean = mean * scale;
    UDAS_UNROLL
    for (int c = 0; c < classes; ++c) g[c] = g[c] * scale * (to_probability(c) - mean);
  }
}

// The gradient of upsample as that of a loss: px.incoming() is the incoming gradient by class. The value of
// the loss, Σ G·activation(v), is of no use.
template <Activation kActivation>
struct UpsampleGradient : Loss<1> {
  static constexpr bool kScores = kActivation != Activation::none;
  template <bool kGrad, class V, class Pixel>
  UDAS_HD static V run(const Pixel& px) {
    auto&& g = px.gradient(0);
    activation_gradient<kActivation, V>(px.logits(0), px.incoming(), px.inverse_log_classes(), px.classes(),
                                        g);
    return V{};
  }
};

// body(constant) with the activation as a constant of the type.
template <class Body>
auto with_activation(Activation activation, const Body& body) {
  if (activation == Activation::none) return body(std::integral_constant<Activation, Activation::none>{});
  if (activation == Activation::softmax) {
    return body(std::integral_constant<Activation, Activation::softmax>{});
  }
  return body(std::integral_constant<Activation, Activation::self_information>{});
}

UDAS_END
