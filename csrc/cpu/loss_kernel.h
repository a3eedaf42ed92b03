#pragma once
// The loop of every loss: interpolate the maps at a tile of pixels, compute the loss and its gradient with
// the pixel function of core/losses.h, and add the gradient to the two low-resolution rows around the pixels.
#include "../core/losses.h"
#include "rows.h"

namespace udas {
inline namespace UDAS_ISA {

using cpu::LossTask;

// One vector of pixels, as the losses of core/losses.h take it.
struct Pixels {
  const LossTask& task;
  float* maps;       // [maps][C][kTile], from the first lane on
  const float* top;  // [maps][kTile], the largest of each pixel
  float* scratch;    // [2][C][kTile]
  VecInt label;
  Vec weight;
  int first_teacher;
  Blended target_values;

  int classes() const { return static_cast<int>(task.classes()); }
  int teachers() const { return static_cast<int>(task.maps.size()) - first_teacher; }
  float inverse_temperature() const { return task.inverse_temperature; }
  float inverse_log_classes() const { return task.inverse_log_classes; }
  Logits logits(int64_t map) const {
    return {{maps + map * task.classes() * kTile}, udas::load(top + map * kTile)};
  }
  Logits teacher(int k) const { return logits(first_teacher + k); }
  const Blended& target() const { return target_values; }
  template <class Body>
  Vec with_target(const Body& body) const {
    return teachers() > 0 ? body(target_values) : body(OneHot<Vec>{label});
  }
  Column gradient(int64_t i) const { return {scratch + i * task.classes() * kTile}; }
};

// The labels, weights and counts of one tile.
struct alignas(64) TileValues {
  int32_t label[kTile];
  float weight[kTile], count[kTile], loss[kTile];

  template <class Loss>
  void load(const LossTask& task, int64_t n, int64_t y, int64_t x, int pixels) {
    if (task.target.type != Type::none) {
      label_tile(task.target, n, y, x, pixels, task.ignore_index, task.classes(), task.bad_label, label);
    } else if (Loss::kLabels) {
      std::fill_n(label, kTile, -1);
    }
    for (int i = 0; i < kTile; ++i) {
      const bool counts = Loss::kCountsLabels ? label[i] >= 0 : i < pixels;
      count[i] = counts ? 1.0f : 0.0f;
    }
    if (task.class_weight != nullptr) {
      for (int i = 0; i < kTile; ++i) count[i] *= task.class_weight[label[i] < 0 ? 0 : label[i]];
    }
    if (task.mask.type == Type::boolean) {
      copy_tile<float, bool>(task.mask, n, y, x, pixels, 0.0f, count);
    }
    if (task.pixel_weight.type == Type::none) {
      std::memcpy(weight, count, sizeof weight);
    } else {
      copy_tile<float, float>(task.pixel_weight, n, y, x, pixels, 0.0f, weight);
      for (int i = 0; i < kTile; ++i) weight[i] *= count[i];
    }
  }
};

// Begin a band of one map; the gradient rows that it will write belong to the task.
inline void begin_band(LossTask& task, int map, int64_t band, RowPair* pair, bool with_gradient) {
  float* rows = nullptr;
  const int64_t first = task.first_row(map, band);
  if (with_gradient) {
    const Map& like = task.maps[map];
    const int64_t size = (task.last_row(map, band) - first + 1) * like.classes * like.width;
    rows = new float[size]();
    task.gradients[map][band].reset(rows);
  }
  pair->begin(task.grid.sample(band), &task.columns[map], rows, first);
}

template <class Loss, bool kGrad>
class LossLoop {
 public:
  explicit LossLoop(LossTask& task)
      : task_(task),
        block_(task.classes() * kTile),
        blended_(Loss::kTargets ? Loss::kMaps : task.maps.size()),
        logits_(blended_ * block_),
        top_(blended_ * kTile),
        scratch_((kRows - 1) * Loss::kMaps * block_ + 2 * block_) {
    const int64_t rows = 2 * task.maps.size() + (kGrad ? 2 * Loss::kMaps : 0);
    const int64_t tiles = strip_tiles(task.grid, rows, task.classes());
    for (size_t m = 0; m < task.maps.size(); ++m) {
      pairs_.emplace_back(task.maps[m], tiles, kGrad && m < Loss::kMaps);
    }
  }

  void band(int64_t band) {
    sample_ = task_.grid.sample(band);
    total_ = count_ = 0.0;
    for (size_t m = 0; m < pairs_.size(); ++m) {
      begin_band(task_, static_cast<int>(m), band, &pairs_[m], kGrad && m < Loss::kMaps);
    }
    for_each_run(task_.grid, task_.rows, pairs_, band,
                 [&](int64_t tile, int64_t begin, int64_t end) { run(tile, begin, end); });
    task_.totals[band] = total_;
    task_.counts[band] = count_;
  }

 private:
  // Rows whose gradients are collected together, which reads and writes the wide rows once for both; a last
  // odd row is collected alone.
  static constexpr int kRows = 2;

  // The scratch arrays of the k-th of kRows rows. A row's arrays past its gradients are free for the next.
  float* scratch(int k) { return scratch_.data() + k * Loss::kMaps * block_; }

  // What interpolates the target of row y while it is read: it is read once or twice.
  Blended target_at(int64_t tile, int lane, int64_t y) {
    if (blended_ == pairs_.size()) return {nullptr, nullptr, 0.0f};
    RowPair& pair = pairs_.back();
    return {pair.low(tile) + lane, pair.high(tile) + lane, task_.rows.back().fraction[y]};
  }

  // Rows [begin, end) of one tile.
  void run(int64_t tile, int64_t begin, int64_t end) {
    const int64_t x = tile * kTile;
    const int pixels = static_cast<int>(std::min<int64_t>(kTile, task_.grid.width - x));
    Vec total = Vec{}, count = Vec{};
    if (kGrad) {
      for (int m = 0; m < Loss::kMaps; ++m) pairs_[m].clear_new(tile);
    }
    for (int64_t y = begin; y < end; ++y) {
      float* to = scratch((y - begin) % kRows);
      values_.load<Loss>(task_, sample_, y, x, pixels);
      for (size_t m = 0; m < blended_; ++m) {
        blend(pairs_[m].low(tile), pairs_[m].high(tile), task_.rows[m].fraction[y], task_.classes(),
              logits_.data() + m * block_, top_.data() + m * kTile);
      }
      for (int lane = 0; lane < kTile; lane += kLanes) {
        const Vec weight = udas::load(values_.weight + lane);
        const Pixels px{task_,
                        logits_.data() + lane,
                        top_.data() + lane,
                        to + lane,
                        udas::load(values_.label + lane),
                        weight,
                        Loss::kMaps,
                        target_at(tile, lane, y)};
        const Vec loss = weight * Loss::template run<kGrad, Vec>(px);
        total += loss;
        count += udas::load(values_.count + lane);
        store(values_.loss + lane, loss);
      }
      if (kGrad && (y - begin) % kRows == kRows - 1) collect<kRows>(tile, y - (kRows - 1));
      if (task_.loss_map != nullptr) {
        float* to = task_.loss_map + (sample_ * task_.grid.height + y) * task_.grid.width + x;
        std::memcpy(to, values_.loss, pixels * sizeof(float));
      }
    }
    if (kGrad && (end - begin) % kRows == 1) collect<1>(tile, end - 1);
    total_ += sum(total);
    count_ += sum(count);
  }

  // The adjoint of the vertical interpolation, of rows from y on.
  template <int rows>
  void collect(int64_t tile, int64_t y) {
    for (int m = 0; m < Loss::kMaps; ++m) {
      add_rows<rows>(scratch(0) + m * block_, Loss::kMaps * block_, &task_.rows[m].fraction[y], block_,
                     pairs_[m].low_gradient(tile), pairs_[m].high_gradient(tile));
    }
  }

  LossTask& task_;
  int64_t block_;
  size_t blended_;  // maps whose rows are interpolated before the pixel function
  Floats logits_, top_, scratch_;
  std::vector<RowPair> pairs_;
  TileValues values_{};
  int64_t sample_ = 0;
  double total_ = 0.0, count_ = 0.0;
};

template <class Loss, bool kGrad>
void run_loop(LossTask& task, int64_t begin, int64_t end) {
  LossLoop<Loss, kGrad> loop(task);
  for (int64_t band = begin; band < end; ++band) loop.band(band);
}

template <class Loss>
void run_loss(LossTask& task, int64_t begin, int64_t end) {
  task.with_grad ? run_loop<Loss, true>(task, begin, end) : run_loop<Loss, false>(task, begin, end);
}

template <class List>
struct LossTable;
template <class... Losses>
struct LossTable<LossList<Losses...>> {
  static constexpr cpu::LossKernel kernels[] = {run_loss<Losses>...};
};

}  // namespace UDAS_ISA
}  // namespace udas
