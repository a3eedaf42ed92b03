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
        top_(kTile),
        values_(task.map.classes * kTile),
        pair_(task.map, task.grid.tiles, false) {}

  void band(int64_t band) {
    const int64_t sample = task_.grid.sample(band);
    const cpu::Axis& rows = task_.rows[0];
    pair_.begin(sample, &task_.columns, nullptr, 0);
    for (int64_t y = task_.grid.first_y(band); y < task_.grid.end_y(band); ++y) {
      pair_.move(rows.low[y], rows.high[y]);
      for (int64_t tile = 0; tile < task_.grid.tiles; ++tile) run(sample, tile, y);
    }
  }

 private:
  void run(int64_t sample, int64_t tile, int64_t y) {
    const cpu::Grid& grid = task_.grid;
    blend(pair_.low(tile), pair_.high(tile), task_.rows[0].fraction[y], classes_, logits_.data(),
          top_.data());
    for (int lane = 0; lane < kTile; lane += kLanes) {
      Column values{values_.data() + lane};
      const Logits logits{{logits_.data() + lane}, load(top_.data() + lane)};
      activate<kActivation, Vec>(logits, task_.inverse_log_classes, classes_, values);
    }
    const int64_t x = tile * kTile, plane = grid.height * grid.width;
    float* to = task_.out + sample * classes_ * plane + y * grid.width + x;
    const float* values = values_.data();
    if (x + kTile <= grid.width) {  // a size that the compiler knows
      for (int c = 0; c < classes_; ++c)
        std::memcpy(to + c * plane, values + c * kTile, kTile * sizeof(float));
    } else {
      for (int c = 0; c < classes_; ++c) std::copy_n(values + c * kTile, grid.width - x, to + c * plane);
    }
  }

  const UpsampleTask& task_;
  int classes_;
  Floats logits_, top_, values_;
  RowPair pair_;
};

inline void run_upsample(const UpsampleTask& task, int64_t begin, int64_t end) {
  with_activation(task.activation, [&](auto activation) {
    UpsampleLoop<decltype(activation)::value> loop(task);
    for (int64_t band = begin; band < end; ++band) loop.band(band);
  });
}

}  // namespace UDAS_ISA
}  // namespace udas
