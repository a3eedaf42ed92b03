#pragma once
// The kernels' tasks in plain types that are copied to the device as they are: the torch tensors stay in the
// .cpp files, the kernels in the .cu files, and neither has to parse the other's headers.
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "../core/activation.h"
#include "../core/region.h"
#include "../core/type.h"

namespace udas {
namespace cuda {

constexpr int kMaxChannels = 64;  // of an image of region_mix

// Low-resolution logits [N, C, h, w]; strides in elements.
struct Map {
  const void* data;
  int64_t stride[4];
  int32_t height, width;
  Type type;
};

// Full-resolution labels [N, H, W], contiguous; data is null where absent.
struct Labels {
  const void* data;
  Type type;
};

// The full-resolution image in tiles: one block of threads each, one thread per column.
struct Tiling {
  int32_t height, width;            // of the image
  int32_t tile_height, tile_width;  // at most 32 rows; tile_width is the number of threads
  int32_t down, across;             // tiles of an image
  int64_t samples;
  bool align_corners;
};

// The largest number of low-resolution rows and columns of a map that one tile touches.
struct Footprint {
  int32_t rows, columns;
};

struct LossTask {
  Tiling tiling;
  int32_t classes, teachers;
  Map maps[1 + kMaxViews];  // those with a gradient first, then the teachers
  int32_t columns;          // of the rows in shared memory, of the teachers or, not unrolled, of the others
  Labels target;
  const float* pixel_weight;  // [N, H, W] or null
  const bool* mask;           // [N, H, W] or null
  const float* class_weight;  // [C] or null
  Map incoming;               // for upsample_backward: the gradient of the result, float32 [N, C, H, W]
  Activation activation;
  int64_t ignore_index;
  float inverse_temperature, inverse_log_classes;
  bool with_grad;
  Footprint footprint[2];
  // Results. A tile's sum of weighted losses and its count; per map with a gradient [tiles, rows,
  // columns, C].
  float* loss_map;  // [N, H, W], null unless asked for
  double *totals, *counts;
  float* partial[2];
};

// The second launch of every loss: adds up the tiles.
struct FinishTask {
  Tiling tiling;
  int32_t classes, maps;
  int32_t height[2], width[2];  // of the maps
  Footprint footprint[2];
  bool mean;
  const double *totals, *counts;
  const float* partial[2];
  float *loss, *scale;  // loss is null where it is a map
  float* gradient[2];   // [N, C, h, w]
};

struct UpsampleTask {
  Tiling tiling;
  int32_t classes, columns;  // columns: of the row in shared memory, where the classes are not unrolled
  Map map;
  Activation activation;
  float inverse_log_classes;
  float* out;  // [N, C, H, W]
};

struct PseudoLabelTask {
  Tiling tiling;
  int32_t classes, views;
  Map maps[kMaxViews];
  int32_t columns;         // of the views' rows in shared memory
  const bool* flips;       // [K, N] or null
  uint32_t flipped_views;  // a bit for each view that is mirrored in every sample
  bool mean;
  float inverse_temperature, threshold;
  const float* class_threshold;  // [C] or null
  uint8_t ignore_label;
  uint8_t* label;
  float* confidence;
  unsigned long long* histogram;  // [C, 2, 64], zeroed by the launch
};

struct ConfusionTask {
  Tiling tiling;
  int32_t classes, columns;  // as of UpsampleTask
  Map map;
  Labels target;
  int64_t ignore_index;
  unsigned long long* counts;  // [C, C], zeroed by the launch
};

struct MixTask {
  int64_t samples;
  int32_t channels, height, width;
  Map inside, outside;
  Labels inside_label, outside_label;
  Region region;
  const int32_t* boxes;  // [N, 4]
  const bool* table;     // [N, table_classes]
  int64_t table_classes;
  const bool* mask;  // [N, H, W]
  Affine affine[kMaxChannels];
  void* image;
  Type out_type;
  bool channels_last;
  void* label;  // contiguous, of the type of the labels
};

// The kernels take these by value, in the 4 KB that every device has for parameters.
template <class... Tasks>
constexpr bool are_parameters = ((sizeof(Tasks) <= 4096 && std::is_trivially_copyable_v<Tasks>) && ...);
static_assert(are_parameters<LossTask, FinishTask, UpsampleTask, PseudoLabelTask, ConfusionTask, MixTask>,
              "a task must fit into a kernel's parameters");

// Choose the tiles, by the sizes and the current device, before memory is allocated.
void plan_loss(LossTask& task, int gradients, int scratch);  // scratch: kScratch of core/losses.h
void plan_upsample(UpsampleTask& task);
void plan_pseudo_label(PseudoLabelTask& task);
void plan_confusion_matrix(ConfusionTask& task);
Footprint footprint(const Tiling& tiling, const Map& map);

// Each launches on `stream` and neither allocates nor waits. run_loss is instantiated for each loss of
// core/losses.h in the .cu of its operator.
template <class Loss>
cudaError_t run_loss(const LossTask& task, cudaStream_t stream);
cudaError_t run_upsample_backward(const LossTask& task, cudaStream_t stream);
cudaError_t run_finish(const FinishTask& task, cudaStream_t stream);
cudaError_t run_upsample(const UpsampleTask& task, cudaStream_t stream);
cudaError_t run_pseudo_label(const PseudoLabelTask& task, cudaStream_t stream);
cudaError_t run_confusion_matrix(const ConfusionTask& task, cudaStream_t stream);
cudaError_t run_region_mix(const MixTask& task, cudaStream_t stream);

}  // namespace cuda
}  // namespace udas
