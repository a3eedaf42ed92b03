#pragma once
// Upsampling on the CPU: interpolate a tile of pixels, apply the activation, store [N, C, H, W]. The gradient
// is computed as that of a loss (loss_kernel.h).
#include "../core/upsample.h"
#include "rows.h"

namespace udas {
inline namespace UDAS_ISA {

using cpu::UpsampleTask;

template <Activation kActivation>
class UpsampleLoop {
 public:
  explicit UpsampleLoop(const UpsampleTask& task)
      : task_(task),
        classes_(static_cast<int>(task.map.classes)),
        logits_(task.map.classes * kTile),
        values_(task.map.classes * kTile) {
    pair_.emplace_back(task.map, task.grid.tiles, false);
  }

  void band(int64_t band) {
    const int64_t sample = task_.grid.sample(band);
    pair_[0].begin(sample, &task_.columns, nullptr, 0);
    for_each_run(task_.grid, task_.rows, pair_, band, [&](int64_t tile, int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) run(sample, tile, y);
    });
  }

 private:
  void run(int64_t sample, int64_t tile, int64_t y) {
    const cpu::Grid& grid = task_.grid;
    blend(pair_[0].low(tile), pair_[0].high(tile), task_.rows[0].fraction[y], classes_, logits_.data());
    for (int lane = 0; lane < kTile; lane += kLanes) {
      Column values{values_.data() + lane};
      activate<kActivation, Vec>(Column{logits_.data() + lane}, task_.inverse_log_classes, classes_, values);
    }
    const int64_t x = tile * kTile, plane = grid.height * grid.width;
    const size_t bytes = std::min<int64_t>(kTile, grid.width - x) * sizeof(float);
    float* to = task_.out + sample * classes_ * plane + y * grid.width + x;
    for (int c = 0; c < classes_; ++c) std::memcpy(to + c * plane, values_.data() + c * kTile, bytes);
  }

  const UpsampleTask& task_;
  int classes_;
  Floats logits_, values_;
  std::vector<RowPair> pair_;  // one
};

inline void run_upsample(const UpsampleTask& task, int64_t begin, int64_t end) {
  with_activation(task.activation, [&](auto activation) {
    UpsampleLoop<decltype(activation)::value> loop(task);
    for (int64_t band = begin; band < end; ++band) loop.band(band);
  });
}

}  // namespace UDAS_ISA
}  // namespace udas
