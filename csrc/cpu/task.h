#pragma once
// The kernels' tasks in plain types: the torch tensors stay in the .cpp files of the operators.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "../core/activation.h"
#include "../core/region.h"
#include "../core/type.h"

namespace udas {
namespace cpu {

constexpr int64_t kNoLabel = 0;  // a class, so never out of range
// Pixels that are worked on together, classes outside, pixels inside: the widest vector. A tile of 256
// classes is 16 KiB, so that several stay in the first cache.
constexpr int kTile = 16;
// Full-resolution rows of one unit of work; fixed, so that results do not depend on the number of threads.
constexpr int kBand = 32;

// Low-resolution logits [N, C, h, w]; strides in elements.
struct Map {
  const void* data;
  Type type;
  int64_t samples, classes, height, width;
  int64_t stride[4];
};

// Full-resolution values [N, H, W] (labels, weights, masks); type none where absent.
struct Plane {
  const void* data = nullptr;
  Type type = Type::none;
  int64_t stride[3] = {0, 0, 0};
};

// Sources of the positions on one axis. fraction is 0 where low == high.
struct Axis {
  Axis(int64_t in, int64_t out, bool align_corners, int64_t padded, bool flipped = false);
  std::vector<int32_t> low, high;  // padded by repeating the last position
  std::vector<float> fraction;
  std::vector<int32_t> first;  // [in + 1]: first[j] is the first position whose low is at least j
};

// Columns [begin, end) of row `y` of sample `n` as float32, in their places in `to`, [C, w].
void load_row(const Map& map, int64_t n, int64_t y, int64_t begin, int64_t end, float* to);

// The full-resolution image in units of work: bands of rows, tiles of columns.
struct Grid {
  Grid(int64_t samples, int64_t height, int64_t width)
      : samples(samples),
        height(height),
        width(width),
        tiles((width + kTile - 1) / kTile),
        bands_per_sample((height + kBand - 1) / kBand) {}
  int64_t samples, height, width, tiles, bands_per_sample;
  int64_t bands() const { return samples * bands_per_sample; }
  int64_t sample(int64_t band) const { return band / bands_per_sample; }
  int64_t first_y(int64_t band) const { return band % bands_per_sample * kBand; }
  int64_t end_y(int64_t band) const { return std::min(first_y(band) + kBand, height); }
};

struct LossTask {
  LossTask(const Grid& grid) : grid(grid) {}
  Grid grid;
  bool with_grad = false;
  std::vector<Map> maps;  // those with a gradient first
  std::vector<Axis> rows, columns;
  Plane target, pixel_weight, mask;
  Map incoming{};  // for upsample_backward: the gradient of the result, float32 [N, C, H, W]
  Activation activation = Activation::none;
  const float* class_weight = nullptr;
  int64_t ignore_index = 255;
  float inverse_temperature = 1.0f, inverse_log_classes = 1.0f;
  // Results. Per band: sum of weighted losses and count; per band and gradient map: rows [rows, C, w].
  float* loss_map = nullptr;
  std::vector<double> totals, counts;
  std::vector<std::unique_ptr<float[]>> gradients[2];
  mutable std::atomic<int64_t> bad_label{kNoLabel};  // a label that is out of range, if there is one

  int64_t classes() const { return maps[0].classes; }
  // The low-resolution rows of map `m` that band `band` reads, both ends included.
  int64_t first_row(int m, int64_t band) const { return rows[m].low[grid.first_y(band)]; }
  int64_t last_row(int m, int64_t band) const { return rows[m].high[grid.end_y(band) - 1]; }
};

// Common parts of the tasks on one map.
struct MapTask {
  MapTask(const Grid& grid, const Map& map, bool align_corners)
      : grid(grid),
        map(map),
        rows{Axis(map.height, grid.height, align_corners, grid.height)},
        columns(map.width, grid.width, align_corners, grid.tiles * kTile) {}
  Grid grid;
  Map map;
  std::vector<Axis> rows;  // one
  Axis columns;
};

struct UpsampleTask : MapTask {
  using MapTask::MapTask;
  Activation activation = Activation::none;
  float inverse_log_classes = 1.0f;
  float* out = nullptr;  // [N, C, H, W]
};

struct ConfusionTask : MapTask {
  using MapTask::MapTask;
  Plane target;
  int64_t ignore_index = 255;
  int64_t* counts = nullptr;                         // [C, C]
  mutable std::atomic<int64_t> bad_label{kNoLabel};  // a label that is out of range, if there is one
};

struct PseudoLabelTask {
  PseudoLabelTask(const Grid& grid) : grid(grid) {}
  Grid grid;
  std::vector<Map> views;
  std::vector<Axis> rows, columns, flipped_columns;
  const bool* flips = nullptr;  // [K, N]
  uint32_t flipped_views = 0;   // a bit for each view that is mirrored in every sample
  bool mean = false;
  float inverse_temperature = 1.0f;
  std::vector<float> threshold;  // [C]
  uint8_t ignore_label = 255;
  uint8_t* label = nullptr;
  float* confidence = nullptr;
  int64_t* histogram = nullptr;  // [C, 2, 64]
};

struct MixTask {
  int64_t samples, channels, height, width;
  const void *inside, *outside;
  Type in_type;
  int64_t inside_stride[4], outside_stride[4];
  Plane inside_label, outside_label;
  Region region;
  const int32_t* boxes;  // [N, 4]
  const bool* table;     // [N, table_classes]
  int64_t table_classes;
  Plane mask;
  std::vector<Affine> affine;  // per channel
  void* image;
  Type out_type;
  int64_t image_stride[4];
  void* label;                                       // contiguous, of the type of the labels
  mutable std::atomic<int64_t> bad_label{kNoLabel};  // a label that is out of range, if there is one
};

// The kernels of one instruction set. Each runs the bands (region_mix: the rows) [begin, end).
using LossKernel = void (*)(LossTask&, int64_t begin, int64_t end);
struct Kernels {
  const LossKernel* losses;  // in the order of AllLosses
  LossKernel upsample_backward;
  void (*upsample)(const UpsampleTask&, int64_t begin, int64_t end);
  void (*pseudo_label)(const PseudoLabelTask&, int64_t begin, int64_t end);
  void (*confusion_matrix)(const ConfusionTask&, int64_t begin, int64_t end);
  void (*region_mix)(const MixTask&, int64_t begin, int64_t end);
};

// The kernels of isa().
const Kernels& kernels();

}  // namespace cpu
}  // namespace udas
