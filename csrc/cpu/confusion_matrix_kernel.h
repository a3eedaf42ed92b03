#pragma once
// The confusion matrix on the CPU: interpolate the logits at a tile of pixels, take the largest, count.
#include "rows.h"

namespace udas {
inline namespace UDAS_ISA {

using cpu::ConfusionTask;

// The class of the largest logit, the lowest of equals. Each half of the classes has a search of its own, as
// a comparison waits for the one before it.
inline VecInt largest_class(const Blended& v, int classes) {
  Vec top = v[0], upper_top = top;
  VecInt label{}, upper_label{};
  const auto compare = [&](int c, Vec& top, VecInt& label) {
    const Vec value = v[c];
    label = select(value > top, VecInt{} + c, label);
    top = larger(value, top);
  };
  const int half = classes / 2;
  for (int c = 0; c < half; ++c) {
    compare(c, top, label);
    compare(half + c, upper_top, upper_label);
  }
  if (classes % 2 != 0) compare(classes - 1, upper_top, upper_label);
  return select(upper_top > top, upper_label, label);
}

class ConfusionLoop {
 public:
  explicit ConfusionLoop(const ConfusionTask& task)
      : task_(task),
        classes_(static_cast<int>(task.map.classes)),
        counts_(task.map.classes * task.map.classes) {
    pair_.emplace_back(task.map, strip_tiles(task.grid, 2, task.map.classes), false);
  }

  void band(int64_t band) {
    sample_ = task_.grid.sample(band);
    pair_[0].begin(sample_, &task_.columns, nullptr, 0);
    for_each_run(task_.grid, task_.rows, pair_, band, [&](int64_t tile, int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) run(tile, y);
    });
  }

  void add_counts() const { add_integers(counts_, task_.counts); }

 private:
  void run(int64_t tile, int64_t y) {
    const int64_t x = tile * kTile;
    const int pixels = static_cast<int>(std::min<int64_t>(kTile, task_.grid.width - x));
    const float *low = pair_[0].low(tile), *high = pair_[0].high(tile);
    const float fraction = task_.rows[0].fraction[y];
    label_tile(task_.target, sample_, y, x, pixels, task_.ignore_index, classes_, task_.bad_label, truth_);
    for (int lane = 0; lane < kTile; lane += kLanes) {
      const VecInt label = largest_class({low + lane, high + lane, fraction}, classes_);
      store(cell_ + lane, load(truth_ + lane) * classes_ + label);  // negative where the truth is
    }
    for (const int32_t cell : cell_) {
      if (cell >= 0) ++counts_[cell];
    }
  }

  const ConfusionTask& task_;
  int classes_;
  std::vector<RowPair> pair_;  // one
  std::vector<int64_t> counts_;
  int64_t sample_ = 0;
  alignas(64) int32_t truth_[kTile], cell_[kTile];
};

inline void run_confusion_matrix(const ConfusionTask& task, int64_t begin, int64_t end) {
  ConfusionLoop loop(task);
  for (int64_t band = begin; band < end; ++band) loop.band(band);
  loop.add_counts();
}

}  // namespace UDAS_ISA
}  // namespace udas
