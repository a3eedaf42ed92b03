#pragma once
// Pseudo-labels on the CPU: interpolate the views at a tile of pixels, take the most probable class, apply
// the threshold, count.
#include "../core/predict.h"
#include "rows.h"

namespace udas {
inline namespace UDAS_ISA {

using cpu::PseudoLabelTask;

class PseudoLabelLoop {
 public:
  explicit PseudoLabelLoop(const PseudoLabelTask& task)
      : task_(task),
        classes_(static_cast<int>(task.views[0].classes)),
        block_(classes_ * kTile),
        logits_(block_),
        top_(kTile),
        mean_(task.mean ? block_ : 0),
        counts_(classes_ * 2 * kBins) {
    pairs_.reserve(task.views.size());
    const int64_t tiles = strip_tiles(task.grid, 2 * task.views.size(), classes_);
    for (const Map& view : task.views) pairs_.emplace_back(view, tiles, false);
  }

  void band(int64_t band) {
    sample_ = task_.grid.sample(band);
    for (size_t k = 0; k < pairs_.size(); ++k) {
      const bool flipped = (task_.flipped_views >> k & 1) != 0 ||
                           (task_.flips != nullptr && task_.flips[k * task_.grid.samples + sample_]);
      pairs_[k].begin(sample_, flipped ? &task_.flipped_columns[k] : &task_.columns[k], nullptr, 0);
    }
    for_each_run(task_.grid, task_.rows, pairs_, band, [&](int64_t tile, int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) run(tile, y);
    });
  }

  void add_counts() const { add_integers(counts_, task_.histogram); }

 private:
  void run(int64_t tile, int64_t y) {
    const int64_t x = tile * kTile;
    const int pixels = static_cast<int>(std::min<int64_t>(kTile, task_.grid.width - x));
    task_.mean ? mean_of_views(tile, y) : best_of_views(tile, y);
    write(x, y, pixels);
  }

  void interpolate(size_t view, int64_t tile, int64_t y) {
    blend(pairs_[view].low(tile), pairs_[view].high(tile), task_.rows[view].fraction[y], classes_,
          logits_.data(), top_.data());
  }

  Logits logits(int lane) { return {{logits_.data() + lane}, load(top_.data() + lane)}; }

  // The view with the largest confidence, the first of equals.
  void best_of_views(int64_t tile, int64_t y) {
    for (size_t k = 0; k < pairs_.size(); ++k) {
      interpolate(k, tile, y);
      for (int lane = 0; lane < kTile; lane += kLanes) {
        Prediction<Vec> found = most_probable<Vec>(logits(lane), task_.inverse_temperature, classes_);
        if (k > 0) {
          const Vec before = load(confidence_ + lane);
          const auto better = found.confidence > before;
          found.label = select(better, found.label, load(label_ + lane));
          found.confidence = select(better, found.confidence, before);
        }
        store(label_ + lane, found.label);
        store(confidence_ + lane, found.confidence);
      }
    }
  }

  void mean_of_views(int64_t tile, int64_t y) {
    std::memset(mean_.data(), 0, block_ * sizeof(float));
    const float share = 1.0f / static_cast<float>(pairs_.size());
    for (size_t k = 0; k < pairs_.size(); ++k) {
      interpolate(k, tile, y);
      for (int lane = 0; lane < kTile; lane += kLanes) {
        Column scratch{logits_.data() + lane}, mean{mean_.data() + lane};
        add_softmax<Vec>(logits(lane), task_.inverse_temperature, share, classes_, mean, scratch);
      }
    }
    for (int lane = 0; lane < kTile; lane += kLanes) {
      const Prediction<Vec> found = arg_max<Vec>(Column{mean_.data() + lane}, classes_);
      store(label_ + lane, found.label);
      store(confidence_ + lane, found.confidence);
    }
  }

  void write(int64_t x, int64_t y, int pixels) {
    const int64_t at = (sample_ * task_.grid.height + y) * task_.grid.width + x;
    const float* threshold = task_.threshold.data();
    const int32_t ignored = task_.ignore_label;
    alignas(64) int32_t cell[kTile], shown[kTile];
    for (int i = 0; i < kTile; ++i) {
      const bool kept = confidence_[i] >= threshold[label_[i]];
      shown[i] = kept ? label_[i] : ignored;
      cell[i] = (label_[i] * 2 + (kept ? 0 : 1)) * kBins + confidence_bin(confidence_[i]);
    }
    for (int i = 0; i < pixels; ++i) task_.label[at + i] = static_cast<uint8_t>(shown[i]);
    for (int i = 0; i < pixels; ++i) ++counts_[cell[i]];
    std::memcpy(task_.confidence + at, confidence_, pixels * sizeof(float));
  }

  const PseudoLabelTask& task_;
  int classes_;
  int64_t block_;
  Floats logits_, top_, mean_;
  std::vector<RowPair> pairs_;
  std::vector<int64_t> counts_;
  int64_t sample_ = 0;
  alignas(64) int32_t label_[kTile];
  alignas(64) float confidence_[kTile];
};

inline void run_pseudo_label(const PseudoLabelTask& task, int64_t begin, int64_t end) {
  PseudoLabelLoop loop(task);
  for (int64_t band = begin; band < end; ++band) loop.band(band);
  loop.add_counts();
}

}  // namespace UDAS_ISA
}  // namespace udas
