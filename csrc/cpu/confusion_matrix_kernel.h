#pragma once
// The confusion matrix on the CPU: interpolate the logits at a tile of pixels, take the largest, count.
#include "../core/predict.h"
#include "rows.h"

namespace udas {
inline namespace UDAS_ISA {

using cpu::ConfusionTask;

class ConfusionLoop {
 public:
  explicit ConfusionLoop(const ConfusionTask& task)
      : task_(task),
        classes_(static_cast<int>(task.map.classes)),
        logits_(task.map.classes * kTile),
        top_(kTile),
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
    blend(pair_[0].low(tile), pair_[0].high(tile), task_.rows[0].fraction[y], classes_, logits_.data(),
          top_.data());
    for (int lane = 0; lane < kTile; lane += kLanes) {
      const Column v{logits_.data() + lane};
      const Vec top = load(top_.data() + lane);
      VecInt label{};
      for (int c = classes_ - 1; c > 0; --c) label = select(v[c] == top, VecInt{} + c, label);
      store(label_ + lane, select(v[0] == top, VecInt{}, label));  // the lowest of equals is taken last
    }
    label_tile(task_.target, sample_, y, x, pixels, task_.ignore_index, classes_, task_.bad_label, truth_);
    for (int i = 0; i < pixels; ++i) {
      if (truth_[i] >= 0) ++counts_[truth_[i] * classes_ + label_[i]];
    }
  }

  const ConfusionTask& task_;
  int classes_;
  Floats logits_, top_;
  std::vector<RowPair> pair_;  // one
  std::vector<int64_t> counts_;
  int64_t sample_ = 0;
  alignas(64) int32_t label_[kTile], truth_[kTile];
};

inline void run_confusion_matrix(const ConfusionTask& task, int64_t begin, int64_t end) {
  ConfusionLoop loop(task);
  for (int64_t band = begin; band < end; ++band) loop.band(band);
  loop.add_counts();
}

}  // namespace UDAS_ISA
}  // namespace udas
