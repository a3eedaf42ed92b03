#pragma once
// The one loop of every prediction: interpolate the views at a tile of pixels, take the most probable class,
// count.
#include "../core/predict.h"
#include "rows.h"

namespace udas {
inline namespace UDAS_ISA {

using cpu::PredictTask;

class PredictLoop {
 public:
  explicit PredictLoop(const PredictTask& task)
      : task_(task),
        classes_(static_cast<int>(task.views[0].classes)),
        block_(classes_ * kTile),
        logits_(block_),
        mean_(task.mean ? block_ : 0),
        counts_(task.confusion ? classes_ * classes_ : classes_ * 2 * kBins) {
    pairs_.reserve(task.views.size());
    for (const Map& view : task.views) pairs_.emplace_back(view, task.grid.tiles, false);
  }

  void band(int64_t band) {
    const int64_t end = task_.grid.end_y(band);
    sample_ = task_.grid.sample(band);
    for (size_t k = 0; k < pairs_.size(); ++k) {
      const bool flipped = task_.flips != nullptr && task_.flips[k * task_.grid.samples + sample_];
      pairs_[k].begin(sample_, flipped ? &task_.flipped_columns[k] : &task_.columns[k], nullptr, 0);
    }
    for (int64_t y = task_.grid.first_y(band); y < end;) {
      const int64_t next = run_end(task_.rows, y, end);
      for (size_t k = 0; k < pairs_.size(); ++k) pairs_[k].move(task_.rows[k].low[y], task_.rows[k].high[y]);
      for (int64_t tile = 0; tile < task_.grid.tiles; ++tile) {
        for (int64_t row = y; row < next; ++row) run(tile, row);
      }
      y = next;
    }
  }

  // Integer sums: the order in which threads add does not matter.
  void add_counts(int64_t* to) const {
    for (size_t i = 0; i < counts_.size(); ++i) {
      if (counts_[i] != 0) __atomic_fetch_add(to + i, counts_[i], __ATOMIC_RELAXED);
    }
  }

 private:
  void run(int64_t tile, int64_t y) {
    const int64_t x = tile * kTile;
    const int pixels = static_cast<int>(std::min<int64_t>(kTile, task_.grid.width - x));
    if (task_.confusion != nullptr) {
      interpolate(0, tile, y);
      for (int lane = 0; lane < kTile; lane += kLanes) {
        store(label_ + lane, arg_max<Vec>(Column{logits_.data() + lane}, classes_).label);
      }
      count_pairs(x, y, pixels);
    } else {
      task_.mean ? mean_of_views(tile, y) : best_of_views(tile, y);
      write(x, y, pixels);
    }
  }

  void interpolate(size_t view, int64_t tile, int64_t y) {
    blend(pairs_[view].low(tile), pairs_[view].high(tile), task_.rows[view].fraction[y], classes_,
          logits_.data());
  }

  // The view with the largest confidence, the first of equals.
  void best_of_views(int64_t tile, int64_t y) {
    for (size_t k = 0; k < pairs_.size(); ++k) {
      interpolate(k, tile, y);
      for (int lane = 0; lane < kTile; lane += kLanes) {
        Prediction<Vec> found =
            most_probable<Vec>(Column{logits_.data() + lane}, task_.inverse_temperature, classes_);
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
        Column logits{logits_.data() + lane}, mean{mean_.data() + lane};
        add_softmax<Vec>(logits, task_.inverse_temperature, share, classes_, mean, logits);
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

  void count_pairs(int64_t x, int64_t y, int pixels) {
    label_tile(task_.target, sample_, y, x, pixels, task_.ignore_index, classes_, task_.bad_label, truth_);
    for (int i = 0; i < pixels; ++i) {
      if (truth_[i] >= 0) ++counts_[truth_[i] * classes_ + label_[i]];
    }
  }

  const PredictTask& task_;
  int classes_;
  int64_t block_;
  Floats logits_, mean_;
  std::vector<RowPair> pairs_;
  std::vector<int64_t> counts_;
  int64_t sample_ = 0;
  alignas(64) int32_t label_[kTile], truth_[kTile];
  alignas(64) float confidence_[kTile];
};

inline void run_predictions(const PredictTask& task, int64_t begin, int64_t end) {
  PredictLoop loop(task);
  for (int64_t band = begin; band < end; ++band) loop.band(band);
  loop.add_counts(task.confusion != nullptr ? task.confusion : task.histogram);
}

}  // namespace UDAS_ISA
}  // namespace udas
