#pragma once
// What a kernel is asked to do, in plain types: the torch tensors stay in the .cpp files of the operators.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "../core/activation.h"
#include "../core/region.h"

namespace udas {
namespace cpu {

constexpr int64_t kNoLabel = INT64_MIN;
constexpr int kTile = 64;  // pixels that are worked on together; classes outside, pixels inside
constexpr int kBand =
    32;  // full-resolution rows of one unit of work; fixed, so that results do not depend on threads

enum class Type { none, float32, float16, bfloat16, uint8, int64, boolean };

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

// Where the positions of one axis read from. fraction is 0 where low == high.
struct Axis {
  Axis(int64_t in, int64_t out, bool align_corners, int64_t padded, bool flipped = false);
  std::vector<int32_t> low, high;  // padded by repeating the last position
  std::vector<float> fraction;
  std::vector<int32_t> first;  // [in + 1]: first[j] is the first position whose low is at least j
};

// Row `y` of sample `n` as float32 [C, w].
void load_row(const Map& map, int64_t n, int64_t y, float* to);

// Full-resolution geometry that loss and prediction tasks share.
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

enum class Loss {
  cross_entropy,
  rectified,
  symmetric_kl,
  ensemble_kl,
  distillation_kl,
  entropy,
  upsample_gradient
};

struct LossTask {
  LossTask(const Grid& grid) : grid(grid) {}
  Grid grid;
  Loss loss = Loss::cross_entropy;
  bool with_grad = false;
  std::vector<Map> maps;  // those with a gradient first
  std::vector<Axis> rows, columns;
  Plane target, pixel_weight, mask;
  Map incoming{};  // the gradient [N, C, H, W], float32, that goes back through `activation`
  Activation activation = Activation::none;
  const float* class_weight = nullptr;
  int64_t ignore_index = 255;
  float inverse_temperature = 1.0f, inverse_log_classes = 1.0f;
  // Results. Per band: sum of weighted losses and count; per band and gradient map: rows [rows, C, w].
  float* loss_map = nullptr;
  std::vector<double> totals, counts;
  std::vector<std::unique_ptr<float[]>> gradients[2];
  mutable std::atomic<int64_t> bad_label{kNoLabel};  // one that is out of range, if any

  int64_t classes() const { return maps[0].classes; }
  // The low-resolution rows of map `m` that band `band` reads, both ends included.
  int64_t first_row(int m, int64_t band) const { return rows[m].low[grid.first_y(band)]; }
  int64_t last_row(int m, int64_t band) const { return rows[m].high[grid.end_y(band) - 1]; }
};

struct UpsampleTask {
  UpsampleTask(const Grid& grid, const Map& map, bool align_corners)
      : grid(grid),
        map(map),
        rows{Axis(map.height, grid.height, align_corners, grid.height)},
        columns(map.width, grid.width, align_corners, grid.tiles * kTile) {}
  Grid grid;
  Map map;
  std::vector<Axis> rows;  // one
  Axis columns;
  Activation activation = Activation::none;
  float inverse_log_classes = 1.0f;
  float* out = nullptr;  // [N, C, H, W]
};

struct PredictTask {
  PredictTask(const Grid& grid) : grid(grid) {}
  Grid grid;
  std::vector<Map> views;
  std::vector<Axis> rows, columns, flipped_columns;
  const bool* flips = nullptr;  // [K, N]
  bool mean = false;
  float inverse_temperature = 1.0f;
  std::vector<float> threshold;  // [C]
  uint8_t ignore_label = 255;
  uint8_t* label = nullptr;
  float* confidence = nullptr;
  int64_t* histogram = nullptr;  // [C, 2, 64]
  // For the confusion matrix instead: the truth and its counts [C, C].
  Plane target;
  int64_t ignore_index = 255;
  int64_t* confusion = nullptr;
  mutable std::atomic<int64_t> bad_label{kNoLabel};  // one that is out of range, if any
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
  std::vector<Affine> affine;  // per channel; empty: pixels are copied
  void* image;
  Type out_type;
  int64_t image_stride[4];
  void* label;                                       // contiguous, of the type of the labels
  mutable std::atomic<int64_t> bad_label{kNoLabel};  // one that is out of range, if any
};

// One set of kernels per instruction set; each does the bands [begin, end).
struct Kernels {
  void (*losses)(LossTask&, int64_t begin, int64_t end);
  void (*upsample)(const UpsampleTask&, int64_t begin, int64_t end);
  void (*predictions)(const PredictTask&, int64_t begin, int64_t end);
  void (*mix)(const MixTask&, int64_t begin, int64_t end);
};

// The kernels of isa().
const Kernels& kernels();

}  // namespace cpu
}  // namespace udas
