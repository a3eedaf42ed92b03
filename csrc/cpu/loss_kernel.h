#pragma once
// The one loop of every loss: interpolate the maps at a tile of pixels, let the pixel function of
// core/losses.h turn logits into the loss and its gradient, and add the gradient to the two rows that the
// pixels lie between.
#include "../core/upsample.h"
#include "rows.h"

namespace udas {
inline namespace UDAS_ISA {

using cpu::LossTask;

// What a pixel function gets for one vector of pixels.
struct Pixels {
  const LossTask& task;
  float* logits;    // [maps][C][64], from the first lane on
  float* gradient;  // [2][C][64]
  VecInt label;
  Vec weight;

  int classes() const { return static_cast<int>(task.classes()); }
  Column u(int64_t map) const { return {logits + map * task.classes() * kTile}; }
  Column g(int64_t map) const { return {gradient + map * task.classes() * kTile}; }
};

struct CrossEntropy {
  static constexpr int kMaps = 1;
  template <bool kGrad>
  static Vec run(const Pixels& px) {
    Column g = px.g(0);
    return cross_entropy_pixel<kGrad, Vec>(px.u(0), px.label, px.weight, px.classes(), g);
  }
};

struct Rectified {
  static constexpr int kMaps = 2;
  template <bool kGrad>
  static Vec run(const Pixels& px) {
    Column gu = px.g(0), gv = px.g(1);
    return rectified_pixel<kGrad, Vec>(px.u(0), px.u(1), px.label, px.weight, px.classes(), gu, gv);
  }
};

struct SymmetricKl {
  static constexpr int kMaps = 2;
  template <bool kGrad>
  static Vec run(const Pixels& px) {
    Column gu = px.g(0), gv = px.g(1);
    return symmetric_kl_pixel<kGrad, Vec>(px.u(0), px.u(1), px.weight, px.classes(), gu, gv);
  }
};

struct EnsembleKl {
  static constexpr int kMaps = 2;
  template <bool kGrad>
  static Vec run(const Pixels& px) {
    Column gu = px.g(0), gv = px.g(1);
    return ensemble_kl_pixel<kGrad, Vec>(px.u(0), px.u(1), px.weight, px.classes(), gu, gv);
  }
};

struct DistillationKl {
  static constexpr int kMaps = 1;
  template <bool kGrad>
  static Vec run(const Pixels& px) {
    Column g = px.g(0), scratch = px.g(1);
    const auto teacher = [&](int k) { return px.u(k + 1); };
    return distillation_kl_pixel<kGrad, Vec>(px.u(0), teacher, static_cast<int>(px.task.maps.size()) - 1,
                                             px.task.inverse_temperature, px.weight, px.classes(), g,
                                             scratch);
  }
};

struct Entropy {
  static constexpr int kMaps = 1;
  template <bool kGrad>
  static Vec run(const Pixels& px) {
    Column g = px.g(0);
    return entropy_pixel<kGrad, Vec>(px.u(0), px.task.inverse_log_classes, px.weight, px.classes(), g);
  }
};

// The way back through upsample. Its incoming gradient stands in the second gradient block.
template <Activation kActivation>
struct UpsampleGradient {
  static constexpr int kMaps = 1;
  template <bool>
  static Vec run(const Pixels& px) {
    Column g = px.g(0);
    activation_gradient<kActivation, Vec>(px.u(0), px.g(1), px.task.inverse_log_classes, px.classes(), g);
    return Vec{};
  }
};

// The labels, weights and counts of one tile.
struct alignas(64) TileValues {
  int32_t label[kTile];
  float weight[kTile], count[kTile], loss[kTile];

  void load(const LossTask& task, int64_t n, int64_t y, int64_t x, int pixels) {
    if (task.target.type != cpu::Type::none) {
      label_tile(task.target, n, y, x, pixels, task.ignore_index, task.classes(), task.bad_label, label);
    }
    const bool labelled = task.loss == cpu::Loss::cross_entropy;  // the others count every pixel
    for (int i = 0; i < kTile; ++i) {
      const bool counts = labelled ? label[i] >= 0 : i < pixels;
      count[i] = counts ? 1.0f : 0.0f;
    }
    if (task.class_weight != nullptr) {
      for (int i = 0; i < kTile; ++i) count[i] *= task.class_weight[label[i] < 0 ? 0 : label[i]];
    }
    if (task.mask.type == cpu::Type::boolean) {
      copy_tile<float, bool>(task.mask, n, y, x, pixels, 0.0f, count);
    }
    if (task.pixel_weight.type == cpu::Type::none) {
      std::memcpy(weight, count, sizeof weight);
    } else {
      copy_tile<float, float>(task.pixel_weight, n, y, x, pixels, 0.0f, weight);
      for (int i = 0; i < kTile; ++i) weight[i] *= count[i];
    }
  }
};

template <class Pixel, bool kGrad>
class LossLoop {
 public:
  explicit LossLoop(LossTask& task)
      : task_(task),
        block_(task.classes() * kTile),
        logits_(task.maps.size() * block_),
        gradient_(2 * block_) {
    for (size_t m = 0; m < task.maps.size(); ++m) {
      pairs_.emplace_back(task.maps[m], task.grid.tiles, kGrad && m < Pixel::kMaps);
    }
  }

  void band(int64_t band) {
    const int64_t end = task_.grid.end_y(band);
    sample_ = task_.grid.sample(band);
    total_ = count_ = 0.0;
    for (size_t m = 0; m < pairs_.size(); ++m) {
      const int map = static_cast<int>(m);
      float* rows = nullptr;
      const int64_t first = task_.first_row(map, band);
      if (kGrad && map < Pixel::kMaps) {
        const Map& like = task_.maps[m];
        const int64_t size = (task_.last_row(map, band) - first + 1) * like.classes * like.width;
        rows = new float[size]();
        task_.gradients[m][band].reset(rows);
      }
      pairs_[m].begin(sample_, &task_.columns[m], rows, first);
    }
    for (int64_t y = task_.grid.first_y(band); y < end;) {
      const int64_t next = run_end(task_.rows, y, end);
      for (size_t m = 0; m < pairs_.size(); ++m) pairs_[m].move(task_.rows[m].low[y], task_.rows[m].high[y]);
      for (int64_t tile = 0; tile < task_.grid.tiles; ++tile) run(tile, y, next);
      y = next;
    }
    for (RowPair& pair : pairs_) pair.end();
    task_.totals[band] = total_;
    task_.counts[band] = count_;
  }

 private:
  // Rows [begin, end) of one tile.
  void run(int64_t tile, int64_t begin, int64_t end) {
    const int64_t x = tile * kTile;
    const int pixels = static_cast<int>(std::min<int64_t>(kTile, task_.grid.width - x));
    Vec total = Vec{}, count = Vec{};
    for (int64_t y = begin; y < end; ++y) {
      values_.load(task_, sample_, y, x, pixels);
      for (size_t m = 0; m < pairs_.size(); ++m) {
        blend(pairs_[m].low(tile), pairs_[m].high(tile), task_.rows[m].fraction[y], task_.classes(),
              logits_.data() + m * block_);
      }
      if (task_.incoming.data != nullptr) {
        map_tile(task_.incoming, sample_, y, x, pixels, gradient_.data() + block_);
      }
      for (int lane = 0; lane < kTile; lane += kLanes) {
        const Vec weight = udas::load(values_.weight + lane);
        const Pixels px{task_, logits_.data() + lane, gradient_.data() + lane,
                        udas::load(values_.label + lane), weight};
        const Vec loss = weight * Pixel::template run<kGrad>(px);
        total += loss;
        count += udas::load(values_.count + lane);
        store(values_.loss + lane, loss);
      }
      if (kGrad) collect(tile, y);
      if (task_.loss_map != nullptr) {
        float* to = task_.loss_map + (sample_ * task_.grid.height + y) * task_.grid.width + x;
        std::memcpy(to, values_.loss, pixels * sizeof(float));
      }
    }
    total_ += sum(total);
    count_ += sum(count);
  }

  // The adjoint of the vertical interpolation.
  void collect(int64_t tile, int64_t y) {
    for (int m = 0; m < Pixel::kMaps; ++m) {
      const float fraction = task_.rows[m].fraction[y];
      const float* from = gradient_.data() + m * block_;
      float* low = pairs_[m].low_gradient(tile);
      float* high = pairs_[m].high_gradient(tile);
      const bool one = low == high;  // at the last row, where fraction is 0
      for (int64_t i = 0; i < block_; i += kLanes) {
        const Vec g = udas::load(from + i), above = fraction * g;
        store(low + i, udas::load(low + i) + (g - above));
        if (!one) store(high + i, udas::load(high + i) + above);
      }
    }
  }

  LossTask& task_;
  int64_t block_;
  Floats logits_, gradient_;
  std::vector<RowPair> pairs_;
  TileValues values_{};
  int64_t sample_ = 0;
  double total_ = 0.0, count_ = 0.0;
};

template <class Pixel, bool kGrad>
void run_loop(LossTask& task, int64_t begin, int64_t end) {
  LossLoop<Pixel, kGrad> loop(task);
  for (int64_t band = begin; band < end; ++band) loop.band(band);
}

template <class Pixel>
void loss_bands(LossTask& task, int64_t begin, int64_t end) {
  task.with_grad ? run_loop<Pixel, true>(task, begin, end) : run_loop<Pixel, false>(task, begin, end);
}

inline void run_losses(LossTask& task, int64_t begin, int64_t end) {
  switch (task.loss) {
    case cpu::Loss::cross_entropy:
      return loss_bands<CrossEntropy>(task, begin, end);
    case cpu::Loss::rectified:
      return loss_bands<Rectified>(task, begin, end);
    case cpu::Loss::symmetric_kl:
      return loss_bands<SymmetricKl>(task, begin, end);
    case cpu::Loss::ensemble_kl:
      return loss_bands<EnsembleKl>(task, begin, end);
    case cpu::Loss::distillation_kl:
      return loss_bands<DistillationKl>(task, begin, end);
    case cpu::Loss::entropy:
      return loss_bands<Entropy>(task, begin, end);
    case cpu::Loss::upsample_gradient:
      return with_activation(task.activation, [&](auto activation) {
        run_loop<UpsampleGradient<decltype(activation)::value>, true>(task, begin, end);
      });
  }
}

}  // namespace UDAS_ISA
}  // namespace udas
