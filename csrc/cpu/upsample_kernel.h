#pragma once
// Upsampling on the CPU: interpolate a tile of pixels, apply the activation, store [N, C, H, W]. The gradient
// is computed as that of a loss (loss_kernel.h).
#include "../core/upsample.h"
#include "rows.h"

namespace udas {
inline namespace UDAS_ISA {

using cpu::UpsampleTask;

// A line of the cache, written to memory without being read first or kept.
inline void stream_tile(const float* from, float* to) {
#if UDAS_SIMD_WIDTH == 16
  _mm512_stream_ps(to, _mm512_load_ps(from));
#elif UDAS_SIMD_WIDTH == 8
  for (int i = 0; i < kTile; i += 8) _mm256_stream_ps(to + i, _mm256_load_ps(from + i));
#else
  std::memcpy(to, from, kTile * sizeof(float));
#endif
}

// Let other threads see what stream_tile() has written.
inline void finish_streams() {
#if UDAS_SIMD_WIDTH >= 8
  _mm_sfence();
#endif
}

template <Activation kActivation>
class UpsampleLoop {
 public:
  explicit UpsampleLoop(const UpsampleTask& task)
      : task_(task),
        classes_(static_cast<int>(task.map.classes)),
        logits_(task.map.classes * kTile),
        top_(kTile),
        values_(task.map.classes * kTile),
        streams_(task.grid.width % kTile == 0 && reinterpret_cast<uintptr_t>(task.out) % 64 == 0) {
    pairs_.emplace_back(task.map, strip_tiles(task.grid, 2, task.map.classes), false);
  }

  void band(int64_t band) {
    const int64_t sample = task_.grid.sample(band);
    pairs_[0].begin(sample, &task_.columns, nullptr, 0);
    for_each_run(task_.grid, task_.rows, pairs_, band, [&](int64_t tile, int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) run(sample, tile, y);
    });
  }

 private:
  void run(int64_t sample, int64_t tile, int64_t y) {
    const cpu::Grid& grid = task_.grid;
    blend(pairs_[0].low(tile), pairs_[0].high(tile), task_.rows[0].fraction[y], classes_, logits_.data(),
          top_.data());
    for (int lane = 0; lane < kTile; lane += kLanes) {
      Column values{values_.data() + lane};
      const Logits logits{{logits_.data() + lane}, load(top_.data() + lane)};
      activate<kActivation, Vec>(logits, task_.inverse_log_classes, classes_, values);
    }
    const int64_t x = tile * kTile, plane = grid.height * grid.width;
    float* to = task_.out + sample * classes_ * plane + y * grid.width + x;
    const float* values = values_.data();
    if (streams_) {
      for (int c = 0; c < classes_; ++c) stream_tile(values + c * kTile, to + c * plane);
    } else if (x + kTile <= grid.width) {  // a size that the compiler knows
      for (int c = 0; c < classes_; ++c)
        std::memcpy(to + c * plane, values + c * kTile, kTile * sizeof(float));
    } else {
      for (int c = 0; c < classes_; ++c) std::copy_n(values + c * kTile, grid.width - x, to + c * plane);
    }
  }

  const UpsampleTask& task_;
  int classes_;
  Floats logits_, top_, values_;
  std::vector<RowPair> pairs_;  // one
  bool streams_;                // every tile is a line of the cache, and written past it
};

inline void run_upsample(const UpsampleTask& task, int64_t begin, int64_t end) {
  with_activation(task.activation, [&](auto activation) {
    UpsampleLoop<decltype(activation)::value> loop(task);
    for (int64_t band = begin; band < end; ++band) loop.band(band);
  });
  finish_streams();
}

}  // namespace UDAS_ISA
}  // namespace udas
