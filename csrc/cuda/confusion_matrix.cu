// The confusion matrix: upsample, arg-max, count, in one pass; nothing of the image's size is written.
//
// One thread a column; equal cells in a row are counted before they are added, to a matrix in shared memory
// for up to 64 classes and to the result beyond. Counts are integers, so their order does not matter. A label
// that is neither a class nor ignored reads nothing and does not count.
//
// The floor, with P pixels: bytes P·(1 or 8) and N·C·h·w·(2 or 4) read; no exps; per pixel and class 4 FMAs
// and the like (interpolation, compare, two selects).
#include "../core/predict.h"
#include "common.cuh"

namespace udas {
namespace cuda {
namespace {

constexpr int kMostSharedMatrix = 64;  // classes

struct ConfusionLayout {
  size_t rows, line, matrix, bytes;
};

__host__ UDAS_DEVICE ConfusionLayout confusion_layout(int height, int classes, int columns) {
  ConfusionLayout at;
  at.rows = 0;                                            // Row [height]
  at.line = at.rows + sizeof(Row) * height;               // of Logits<0>
  at.matrix = at.line + line_bytes(1, classes, columns);  // unsigned [classes][classes]
  at.bytes = at.matrix + (classes <= kMostSharedMatrix ? sizeof(unsigned) * classes * classes : 0);
  return at;
}

template <int C>
class ConfusionBlock {
 public:
  UDAS_DEVICE ConfusionBlock(const ConfusionTask& task, unsigned char* shared)
      : task_(task), tile_(task.tiling, blockIdx.x) {
    const ConfusionLayout at = confusion_layout(task.tiling.tile_height, classes(), C > 0 ? 0 : task.columns);
    rows_ = reinterpret_cast<Row*>(shared + at.rows);
    line_ = reinterpret_cast<float*>(shared + at.line);
    matrix_ = reinterpret_cast<unsigned*>(shared + at.matrix);
  }

  UDAS_DEVICE void run() {
    const int cells = in_shared() ? classes() * classes() : 0;
    for (int y = threadIdx.x; y < tile_.rows; y += width())
      rows_[y] = row_of(task_.tiling, task_.map, tile_, y);
    for (int i = threadIdx.x; i < cells; i += width()) matrix_[i] = 0;
    __syncthreads();
    const bool inside = static_cast<int>(threadIdx.x) < tile_.columns;
    if (C == 0 || inside) walk(inside);
    __syncthreads();
    for (int i = threadIdx.x; i < cells; i += width()) {
      if (matrix_[i] != 0) atomicAdd(task_.counts + i, static_cast<unsigned long long>(matrix_[i]));
    }
  }

 private:
  UDAS_DEVICE int width() const { return C > 0 ? kTileWidth : task_.tiling.tile_width; }
  UDAS_DEVICE Classes<C> classes() const { return {task_.classes}; }
  UDAS_DEVICE bool in_shared() const { return classes() <= kMostSharedMatrix; }

  UDAS_DEVICE void walk(bool inside) {
    const Tiling& tiling = task_.tiling;
    const int x = tile_.x + min(static_cast<int>(threadIdx.x), tile_.columns - 1);
    const Source column = column_position(tiling, task_.map, x);
    int64_t at = (tile_.sample * tiling.height + tile_.y) * tiling.width + x;
    int64_t next = load_label(task_.target, at);
    Logits<C, false> logits;
    if constexpr (C == 0) {
      const int first = column_position(tiling, task_.map, tile_.x).low;
      logits.keep_in(line_, task_.classes, task_.columns, task_.map, tiling, first, column);
    }
    const Row* row = rows_;
    int cell = 0;
    unsigned count = 0;
#pragma unroll 1
    for (int y = 0; y < tile_.rows; ++y, ++row, at += tiling.width) {
      const int64_t truth = next;
      if (y + 1 < tile_.rows) next = load_label(task_.target, at + tiling.width);
      logits.move(task_.map, tile_.sample, *row, column);
      if (!inside) continue;
      const int found = arg_max<float>(logits, classes()).label;
      if (truth == task_.ignore_index || truth < 0 || truth >= classes()) continue;
      const int now = static_cast<int>(truth) * classes() + found;
      if (now != cell) {
        add(cell, count);
        cell = now;
        count = 0;
      }
      ++count;
    }
    add(cell, count);
  }

  UDAS_DEVICE void add(int cell, unsigned count) {
    if (in_shared()) {
      atomicAdd(matrix_ + cell, count);
    } else {
      atomicAdd(task_.counts + cell, static_cast<unsigned long long>(count));
    }
  }

  const ConfusionTask& task_;
  const Tile tile_;
  Row* rows_;
  float* line_;
  unsigned* matrix_;
};

template <int C>
__global__ void __launch_bounds__(kTileWidth, 4) confusion_matrix_kernel(UDAS_PARAMETER ConfusionTask task) {
  ConfusionBlock<C>(task, shared_memory()).run();
}

}  // namespace

void plan_confusion_matrix(ConfusionTask& task) {
  const bool unrolled = is_unrolled(task.classes);
  choose_tiles(task.tiling, widest_tile(task.classes), 4, [&](int height, int width) {
    task.columns = unrolled ? 0 : most_columns(&task.map, 1, width, task.tiling);
    return confusion_layout(height, task.classes, task.columns).bytes;
  });
}

cudaError_t run_confusion_matrix(const ConfusionTask& task, cudaStream_t stream) {
  const Tiling& tiling = task.tiling;
  const cudaError_t zeroed =
      cudaMemsetAsync(task.counts, 0, sizeof(*task.counts) * task.classes * task.classes, stream);
  if (zeroed != cudaSuccess || tile_count(tiling) == 0) return zeroed;
  return with_classes(task.classes, [&](auto classes) {
    constexpr int C = decltype(classes)::value;
    return launch(confusion_matrix_kernel<C>, dim3(static_cast<unsigned>(tile_count(tiling))),
                  tiling.tile_width, confusion_layout(tiling.tile_height, task.classes, task.columns).bytes,
                  stream, task);
  });
}

}  // namespace cuda
}  // namespace udas
