#pragma once
// Prediction from a pixel's logits: arg-max, confidence, and the confidence's bin in the histogram.
#include "losses.h"

UDAS_BEGIN

constexpr int kBins = 64;  // of a confidence histogram; a class has one for kept and one for dropped pixels

// A label and its confidence; ties go to the lowest class. Least, as in losses.h: 4; the comparison and two
// selections, or a maximum, a comparison and a selection.
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

// The most probable class of softmax(v / T): its probability is exp(largest score) / Σ exp(score). Least, as
// in losses.h: 6 and 1 exp a view; the label 2.
template <class V, class Logits>
UDAS_HD Prediction<V> most_probable(const Logits& v, float inverse_temperature, int classes) {
  const auto x = scores<V>(v, classes, inverse_temperature);
  constexpr bool kSearch = kGivesScores<Logits>;  // else the largest score is 0
  const V last = x[classes - 1];
  V top = kSearch ? last : V{}, sum = x.exponential(last);
  IntOf<V> label = IntOf<V>{} + (classes - 1);
  UDAS_UNROLL
  for (int c = classes - 2; c >= 0; --c) {  // downwards: the lowest of equals is the last to be taken
    const V score = x[c];
    const auto better = score >= top;
    label = select(better, IntOf<V>{} + c, label);
    if (kSearch) top = select(better, score, top);
    sum += x.exponential(score);
  }
  return {divide(kSearch ? x.exponential(top) : V{} + 1.0f, sum), label};
}

// mean[c] += share · softmax(v / T)[c]; scratch may be v, unless v gives scores.
template <class V, class Logits, class Mean, class Scratch>
UDAS_HD void add_softmax(const Logits& v, float inverse_temperature, float share, int classes, Mean& mean,
                         Scratch& scratch) {
  const V sum = exponentials(scores<V>(v, classes, inverse_temperature), classes, scratch);
  const V scale = divide(V{} + share, sum);
  UDAS_UNROLL
  for (int c = 0; c < classes; ++c) mean[c] += scratch[c] * scale;
}

// Bin floor(64·confidence), 1 in the last, a NaN in the first.
UDAS_HD int confidence_bin(float confidence) {
  const int bin = static_cast<int>(larger(confidence * kBins, 0.0f));
  return bin < kBins ? bin : kBins - 1;
}

UDAS_END
