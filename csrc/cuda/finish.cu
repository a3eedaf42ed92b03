// The host side of a launch that all losses share (tiles, footprints), and their second launch.
#include "loss.cuh"

namespace udas {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTogether = 8;  // classes that a thread of the gradient adds up at a time

// The total of the tiles' sums, in an order that depends on their number alone.
__device__ double ordered_sum(const double* values, int64_t count, double* shared) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += values[i];
  shared[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  __syncthreads();
  sum = shared[0];
  __syncthreads();
  return sum;
}

__device__ void finish_loss(const FinishTask& task, double* shared) {
  const int64_t tiles = tile_count(task.tiling);
  const double total = ordered_sum(task.totals, tiles, shared);
  const double count = task.mean ? ordered_sum(task.counts, tiles, shared) : 1.0;
  if (threadIdx.x != 0) return;
  const bool none = count == 0.0;  // nothing counts; a NaN does
  *task.scale = none ? 0.0f : static_cast<float>(1.0 / count);
  if (task.loss != nullptr) *task.loss = none ? 0.0f : static_cast<float>(total / count);
}

// One low-resolution cell, kTogether classes from `first` on: the patches of the tiles that touch it, row by
// row.
__device__ void finish_cell(const FinishTask& task, int map, int64_t sample, int y, int x, int first) {
  const Tiling& tiling = task.tiling;
  const int height = task.height[map], width = task.width[map];
  const bool corners = tiling.align_corners;
  const int top = static_cast<int>(first_position(y - 1, height, tiling.height, corners));
  const int bottom = static_cast<int>(first_position(y + 1, height, tiling.height, corners));
  const int left = static_cast<int>(first_position(x - 1, width, tiling.width, corners));
  const int right = static_cast<int>(first_position(x + 1, width, tiling.width, corners));
  const Footprint& room = task.footprint[map];
  float sum[kTogether] = {};
  if (top < bottom && left < right) {
#pragma unroll 1
    for (int down = top / tiling.tile_height; down <= (bottom - 1) / tiling.tile_height; ++down) {
      const int row = y - source(down * tiling.tile_height, height, tiling.height, corners).low;
#pragma unroll 1
      for (int across = left / tiling.tile_width; across <= (right - 1) / tiling.tile_width; ++across) {
        const int column = x - source(across * tiling.tile_width, width, tiling.width, corners).low;
        const int64_t tile = (sample * tiling.down + down) * tiling.across + across;
        const float* from =
            task.partial[map] + ((tile * room.rows + row) * room.columns + column) * task.classes + first;
#pragma unroll
        for (int c = 0; c < kTogether; ++c) {
          if (first + c < task.classes) sum[c] += from[c];
        }
      }
    }
  }
  const int64_t plane = static_cast<int64_t>(height) * width;
  float* to = task.gradient[map] + (sample * task.classes + first) * plane + int64_t{y} * width + x;
#pragma unroll
  for (int c = 0; c < kTogether; ++c, to += plane) {
    if (first + c < task.classes) *to = sum[c];
  }
}

// Blocks that the cells of a low-resolution row take.
__host__ UDAS_DEVICE unsigned blocks_of_row(int width) {
  return (static_cast<unsigned>(width) + kThreads - 1) / kThreads;
}

// Block (0, 0, 0): the loss and its scale. Blocks (1 + i, j, m): cells of map m, i by rows, j by classes.
__global__ void __launch_bounds__(kThreads) finish_kernel(UDAS_PARAMETER FinishTask task) {
  const int map = blockIdx.z;
  if (blockIdx.x == 0) {
    if (blockIdx.y == 0 && map == 0) finish_loss(task, reinterpret_cast<double*>(shared_memory()));
    return;
  }
  const unsigned index = blockIdx.x - 1, across = blocks_of_row(task.width[map]);
  const unsigned row = index / across, sample = row / task.height[map];
  const int x = static_cast<int>((index - row * across) * kThreads + threadIdx.x);
  if (sample >= task.tiling.samples || x >= task.width[map]) return;
  finish_cell(task, map, sample, row - sample * task.height[map], x, blockIdx.y * kTogether);
}

// The largest number of low-resolution positions that a tile of `step` positions spans on an axis.
int most_touched(int in, int out, int step, bool align_corners) {
  int most = 1;
  for (int begin = 0; begin < out; begin += step) {
    const int last = (out - begin < step ? out : begin + step) - 1;
    const int touched =
        source(last, in, out, align_corners).high - source(begin, in, out, align_corners).low + 1;
    most = touched > most ? touched : most;
  }
  return most;
}

}  // namespace

void plan_loss(LossTask& task, int gradients, int scratch) {
  const bool unrolled = is_unrolled(task.classes);
  const int lines = (unrolled ? gradients : scratch) * task.classes;  // at most, LossBlock::lines
  // As LossBlock has it.
  const auto shared = [&](int height, int width) {
    task.columns = unrolled ? most_columns(task.maps + gradients, task.teachers, width, task.tiling)
                            : most_columns(task.maps, gradients, width, task.tiling);
    const size_t staged = unrolled ? shared_rows_bytes(task.teachers, task.classes, task.columns)
                                   : line_bytes(gradients, task.classes, task.columns);
    return loss_layout(task, unrolled ? kTileHeight : height, width, gradients, staged, lines).bytes;
  };
  choose_tiles(task.tiling, widest_tile(task.classes), gradients == 1 ? 3 : 2, shared);
}

Footprint footprint(const Tiling& tiling, const Map& map) {
  return {most_touched(map.height, tiling.height, tiling.tile_height, tiling.align_corners),
          most_touched(map.width, tiling.width, tiling.tile_width, tiling.align_corners)};
}

cudaError_t run_finish(const FinishTask& task, cudaStream_t stream) {
  int64_t most = 0;
  for (int m = 0; m < task.maps; ++m) {
    const int64_t own = task.tiling.samples * task.height[m] * blocks_of_row(task.width[m]);
    most = own > most ? own : most;
  }
  const dim3 blocks(static_cast<unsigned>(1 + most),
                    most > 0 ? (task.classes + kTogether - 1) / kTogether : 1, task.maps > 0 ? task.maps : 1);
  return launch(finish_kernel, blocks, kThreads, kThreads * sizeof(double), stream, task);
}

}  // namespace cuda
}  // namespace udas
