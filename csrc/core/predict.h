#pragma once
// What a pixel's logits predict: arg-max, confidence, and the bin of a confidence.
#include "losses.h"

UDAS_BEGIN

constexpr int kBins = 64;  // of the confidence histogram, per class and per kept or dropped

// A label and its confidence; ties go to the lowest class.
template <class V>
struct Prediction {
  V confidence;
  IntOf<V> label;
};

template <class V, class Values>
UDAS_HD Prediction<V> arg_max(const Values& v, int classes) {
  Prediction<V> best{V(v[0]), IntOf<V>{}};
  UDAS_UNROLL
  for (int c = 1; c < classes; ++c) {
    const auto better = V(v[c]) > best.confidence;
    best.label = select(better, IntOf<V>{} + c, best.label);
    best.confidence = select(better, V(v[c]), best.confidence);
  }
  return best;
}

// The most probable class of softmax(v / T): its probability is 1 / Σ exp((v - max)/T).
template <class V, class Logits>
UDAS_HD Prediction<V> most_probable(const Logits& v, float inverse_temperature, int classes) {
  Prediction<V> best = arg_max<V>(v, classes);
  V sum = V{};
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) sum += exp((V(v[c]) - best.confidence) * inverse_temperature);
  best.confidence = 1.0f / sum;
  return best;
}

// mean[c] += share · softmax(v / T)[c]; scratch may be v.
template <class V, class Logits, class Mean, class Scratch>
UDAS_HD void add_softmax(const Logits& v, float inverse_temperature, float share, int classes, Mean& mean,
                         Scratch& scratch) {
  const V top = largest<V>(v, classes);
  const V scale = share / exponentials<V>(v, top, classes, scratch, inverse_temperature);
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) mean[c] += scratch[c] * scale;
}

// Bin floor(64·confidence), 1 in the last, a NaN in the first.
UDAS_HD int confidence_bin(float confidence) {
  if (!(confidence > 0.0f)) return 0;
  const int bin = static_cast<int>(confidence * kBins);
  return bin < kBins ? bin : kBins - 1;
}

UDAS_END
