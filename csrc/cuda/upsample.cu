// Upsampling with its activation, straight to [N, C, H, W]. One thread per column, as everywhere
// (common.cuh): a warp stores 32 neighbours of a class at a time.
//
// The floor, with P pixels and C classes: bytes 4·P·C written, N·C·h·w·(2 or 4) read; exps P·C for softmax
// and self-information. At stride 8 this is bound by the bytes written.
#include "../core/upsample.h"
#include "common.cuh"

namespace udas {
namespace cuda {
namespace {

// The classes of one pixel in [N, C, H, W].
struct Planes {
  UDAS_DEVICE float& operator[](int c) const { return first[c * pitch]; }
  float* first;
  int64_t pitch;
};

template <Activation kActivation, int C>
__global__ void __launch_bounds__(kTileWidth, 4) upsample_kernel(UDAS_PARAMETER UpsampleTask task) {
  const Tiling& tiling = task.tiling;
  const Tile tile(tiling, blockIdx.x);
  Row* rows = reinterpret_cast<Row*>(shared_memory());
  float* line = reinterpret_cast<float*>(rows + tiling.tile_height);
  for (int y = threadIdx.x; y < tile.rows; y += tiling.tile_width) {
    rows[y] = row_of(tiling, task.map, tile, y);
  }
  __syncthreads();
  const bool inside = static_cast<int>(threadIdx.x) < tile.columns;
  if (C > 0 && !inside) return;
  const int x = tile.x + min(static_cast<int>(threadIdx.x), tile.columns - 1);
  const Source column = column_position(tiling, task.map, x);
  const Classes<C> classes{task.classes};
  const int64_t plane = static_cast<int64_t>(tiling.height) * tiling.width;
  Planes to{task.out + tile.sample * task.classes * plane + static_cast<int64_t>(tile.y) * tiling.width + x,
            plane};
  Logits<C, kActivation != Activation::none> logits;
  if constexpr (C == 0) {
    const int first = column_position(tiling, task.map, tile.x).low;
    logits.keep_in(line, task.classes, task.columns, task.map, tiling, first, column);
  }
#pragma unroll 1
  for (int y = 0; y < tile.rows; ++y, to.first += tiling.width) {
    logits.move(task.map, tile.sample, rows[y], column);
    if constexpr (C == 0) {
      if (inside) activate<kActivation, float>(logits, task.inverse_log_classes, classes, to);
    } else {
      Values<C> values;
      activate<kActivation, float>(logits, task.inverse_log_classes, classes, values);
#pragma unroll
      for (int c = 0; c < C; ++c) to[c] = values[c];
    }
  }
}

// A row of tables for each pixel row, and the line of Logits<0>.
size_t upsample_bytes(const UpsampleTask& task, int height) {
  return sizeof(Row) * height + line_bytes(1, task.classes, task.columns);
}

}  // namespace

void plan_upsample(UpsampleTask& task) {
  const bool unrolled = is_unrolled(task.classes);
  choose_tiles(task.tiling, widest_tile(task.classes), 4, [&](int height, int width) {
    task.columns = unrolled ? 0 : most_columns(&task.map, 1, width, task.tiling);
    return upsample_bytes(task, height);
  });
}

cudaError_t run_upsample(const UpsampleTask& task, cudaStream_t stream) {
  const Tiling& tiling = task.tiling;
  if (tile_count(tiling) == 0) return cudaSuccess;
  const dim3 blocks(static_cast<unsigned>(tile_count(tiling)));
  const size_t bytes = upsample_bytes(task, tiling.tile_height);
  return with_activation(task.activation, [&](auto activation) {
    constexpr Activation kActivation = decltype(activation)::value;
    return with_classes(task.classes, [&](auto classes) {
      constexpr int C = decltype(classes)::value;
      return launch(upsample_kernel<kActivation, C>, blocks, tiling.tile_width, bytes, stream, task);
    });
  });
}

}  // namespace cuda
}  // namespace udas
