#pragma once
// Upsampling on the CPU: interpolate a tile of pixels, apply the activation, store [N, C, H, W]; and the
// gradient of that, whose task is that of a loss.
#include "../core/upsample.h"
#include "loss_kernel.h"

namespace udas {
inline namespace UDAS_ISA {

using cpu::UpsampleTask;

// Tiles of a row that are read or written together: memory moves two lines of a plane in half the time of two
// lines apart.
constexpr int kTogether = 2;

// The values take the place of the logits where they can, so that many classes stay in the first cache.
constexpr bool in_place(Activation activation) { return activation != Activation::self_information; }

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
        logits_(in_place(kActivation) ? 0 : task.map.classes * kTile),
        top_(kTile),
        values_(kTogether * task.map.classes * kTile),
        streams_(task.grid.width % kTile == 0 && reinterpret_cast<uintptr_t>(task.out) % 64 == 0) {
    pairs_.emplace_back(task.map, strip_tiles(task.grid, 2, task.map.classes), false);
  }

  void band(int64_t band) {
    const int64_t sample = task_.grid.sample(band);
    pairs_[0].begin(sample, &task_.columns, nullptr, 0);
    for_each_strip(task_.grid, task_.rows, pairs_, band, [&](Strip strip, int64_t begin, int64_t end) {
      for (int64_t first = strip.begin; first < strip.end; first += kTogether) {
        const Strip tiles{first, std::min(first + kTogether, strip.end)};
        for (int64_t y = begin; y < end; ++y) {
          for (int64_t tile = first; tile < tiles.end; ++tile) compute(tile, y, block(tile - first));
          write(sample, tiles, y);
        }
      }
    });
  }

 private:
  float* block(int64_t k) { return values_.data() + k * classes_ * kTile; }

  void compute(int64_t tile, int64_t y, float* to) {
    float* scores = in_place(kActivation) ? to : logits_.data();
    blend(pairs_[0].low(tile), pairs_[0].high(tile), task_.rows[0].fraction[y], classes_, scores,
          top_.data());
    if (kActivation == Activation::none) return;
    for (int lane = 0; lane < kTile; lane += kLanes) {
      Column values{to + lane};
      const Logits logits{{scores + lane}, load(top_.data() + lane)};
      activate<kActivation, Vec>(logits, task_.inverse_log_classes, classes_, values);
    }
  }

  void write(int64_t sample, Strip tiles, int64_t y) {
    const cpu::Grid& grid = task_.grid;
    const int64_t x = tiles.begin * kTile, plane = grid.height * grid.width;
    float* to = task_.out + sample * classes_ * plane + y * grid.width + x;
    if (streams_) {
      for (int c = 0; c < classes_; ++c) {
        for (int64_t k = 0; k < tiles.tiles(); ++k)
          stream_tile(block(k) + c * kTile, to + c * plane + k * kTile);
      }
      return;
    }
    for (int64_t k = 0; k < tiles.tiles(); ++k) {
      const int64_t count = std::min<int64_t>(kTile, grid.width - x - k * kTile);
      for (int c = 0; c < classes_; ++c) {
        const float* from = block(k) + c * kTile;
        float* tile = to + c * plane + k * kTile;
        if (count == kTile) {
          std::memcpy(tile, from, kTile * sizeof(float));  // a size that the compiler knows
        } else {
          std::copy_n(from, count, tile);
        }
      }
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

// The incoming gradient of one lane group by class, in the map itself or in a copy.
struct Incoming {
  const float* at;
  int64_t stride;  // of the classes
  Vec operator[](int c) const {
    Vec values;
    std::memcpy(&values, at + c * stride, sizeof values);
    return values;
  }
};

template <Activation kActivation>
class UpsampleBackwardLoop {
 public:
  explicit UpsampleBackwardLoop(LossTask& task)
      : task_(task),
        map_(task.incoming),
        classes_(static_cast<int>(task.classes())),
        block_(task.classes() * kTile),
        logits_(in_place(kActivation) ? 0 : block_),
        top_(kTile),
        copy_(block_),
        gradient_(kRows * block_) {
    pairs_.emplace_back(task.maps[0], strip_tiles(task.grid, 4, classes_), true);
  }

  void band(int64_t band) {
    sample_ = task_.grid.sample(band);
    begin_band(task_, 0, band, &pairs_[0], true);
    for_each_strip(task_.grid, task_.rows, pairs_, band, [&](Strip strip, int64_t begin, int64_t end) {
      for (int64_t first = strip.begin; first < strip.end; first += kTogether) {
        run({first, std::min(first + kTogether, strip.end)}, begin, end);
      }
    });
  }

 private:
  static constexpr int kRows = 4;  // whose gradients are collected together

  // Rows [begin, end) of some tiles.
  void run(Strip tiles, int64_t begin, int64_t end) {
    for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) pairs_[0].clear_new(tile);
    for (int64_t y = begin; y < end; y += kRows) {
      for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
        const int64_t rows = std::min<int64_t>(kRows, end - y);
        for (int64_t k = 0; k < rows; ++k) {
          fetch(tiles, tile - tiles.begin, y + kRows + k < end ? y + kRows + k : -1, begin + k);
          compute(tile, y + k, gradient_.data() + k * block_);
        }
        if (rows == kRows) {
          collect<kRows>(tile, y, 0);
        } else {
          for (int k = 0; k < rows; ++k) collect<1>(tile, y, k);
        }
      }
    }
  }

  // Ask for one of kTogether parts of a row of these tiles, or of row `next` of the next ones where y is
  // negative. Planes are far apart, so that the processor cannot foresee it.
  void fetch(Strip tiles, int64_t part, int64_t y, int64_t next) {
    const int64_t x = (y < 0 ? tiles.end : tiles.begin) * kTile;
    const float* at = static_cast<const float*>(map_.data) + sample_ * map_.stride[0] +
                      (y < 0 ? next : y) * map_.stride[2] + x * map_.stride[3];
    for (int64_t c = part * classes_ / kTogether; c < (part + 1) * classes_ / kTogether; ++c) {
      for (int k = 0; k < kTogether; ++k) {
        __builtin_prefetch(at + c * map_.stride[1] + k * kTile * map_.stride[3]);
      }
    }
  }

  void compute(int64_t tile, int64_t y, float* to) {
    const Incoming incoming = incoming_at(tile, y);
    float* scores = in_place(kActivation) ? to : logits_.data();
    if (kActivation != Activation::none) {
      blend(pairs_[0].low(tile), pairs_[0].high(tile), task_.rows[0].fraction[y], classes_, scores,
            top_.data());
    }
    for (int lane = 0; lane < kTile; lane += kLanes) {
      const Logits logits{{scores + lane}, load(top_.data() + lane)};
      const Incoming of_lanes{incoming.at + lane, incoming.stride};
      Column gradient{to + lane};
      activation_gradient<kActivation, Vec>(logits, of_lanes, task_.inverse_log_classes, classes_, gradient);
    }
  }

  // Of a tile whose pixels lie side by side in the map itself, else a copy, 0 past the end.
  Incoming incoming_at(int64_t tile, int64_t y) {
    const int64_t x = tile * kTile;
    const int count = static_cast<int>(std::min<int64_t>(kTile, task_.grid.width - x));
    const float* at = static_cast<const float*>(map_.data) + sample_ * map_.stride[0] + y * map_.stride[2] +
                      x * map_.stride[3];
    if (map_.stride[3] == 1 && count == kTile) return {at, map_.stride[1]};
    for (int64_t c = 0; c < classes_; ++c) {
      float* to = copy_.data() + c * kTile;
      for (int i = 0; i < count; ++i) to[i] = at[c * map_.stride[1] + i * map_.stride[3]];
      std::fill(to + count, to + kTile, 0.0f);
    }
    return {copy_.data(), kTile};
  }

  template <int rows>
  void collect(int64_t tile, int64_t y, int k) {
    add_rows<rows>(gradient_.data() + k * block_, block_, &task_.rows[0].fraction[y + k], block_,
                   pairs_[0].low_gradient(tile), pairs_[0].high_gradient(tile));
  }

  LossTask& task_;
  const Map& map_;  // the incoming gradient
  int classes_;
  int64_t block_;
  Floats logits_, top_, copy_, gradient_;
  std::vector<RowPair> pairs_;  // one
  int64_t sample_ = 0;
};

inline void run_upsample_backward(LossTask& task, int64_t begin, int64_t end) {
  with_activation(task.activation, [&](auto activation) {
    UpsampleBackwardLoop<decltype(activation)::value> loop(task);
    for (int64_t band = begin; band < end; ++band) loop.band(band);
  });
}

}  // namespace UDAS_ISA
}  // namespace udas
