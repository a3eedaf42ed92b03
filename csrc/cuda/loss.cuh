#pragma once
// The loop of every loss on the device: interpolate the maps at a pixel, compute the loss and its gradient
// with the pixel function of core/losses.h, apply the adjoint of the interpolation.
//
// loss_kernel: a block owns a tile of 128 columns by 8 to 32 rows, a thread one column. Vertically, a
// gradient is added to two values per class in registers, which belong to the low-resolution rows above and
// below; when the walk leaves a row, the tile's 128 columns meet in shared memory and are added up per
// low-resolution column, left to right, into the tile's own patch of `partial`. finish_kernel adds for each
// low-resolution cell the patches that touch it, in the order of the tiles. So there are no float atomics,
// the same input gives the same bits, no pixel is computed twice, and the temporary memory is the patches:
// about 1.7 low-resolution maps per gradient at stride 8 with 32 rows, 3.4 with 8.
//
// The floor of every loss with M maps with a gradient, K without, P pixels and C classes (each loss's .cu
// gives the exps and FMAs of its pixel function):
//   bytes  labels and weights P·(1 to 8) + P·4 where given, logits (M + K)·N·C·h·w·(2 or 4), gradients
//          M·N·C·h·w·4 written, patches about 2·1.7·M·N·C·h·w·4 (they stay in L2)
//   FMAs   per pixel, class and map: 1 to interpolate at each use, 2 for the adjoint; horizontal work is
//          1/8 of that at stride 8
// At stride 8 this is bound by exps and instruction issue, not by memory.
#include "../core/losses.h"
#include "common.cuh"
#include "pixel.cuh"

namespace udas {
namespace cuda {

// ---- a block's shared memory ---------------------------------------------------------------------------

// Sizes and offsets, the same for the host that reserves the memory and the block that uses it.
struct LossLayout {
  size_t sums, rows, columns, staged, starts, lines, bytes;
};

// `staged`: bytes for SharedRows of the teachers, or for the lines of Logits<0>.
__host__ UDAS_DEVICE LossLayout loss_layout(const LossTask& task, int height, int width, int gradients,
                                            size_t staged, int lines) {
  const int maps = gradients + task.teachers;
  LossLayout at;
  at.sums = 0;                                             // double [2][width]
  at.rows = at.sums + 2 * sizeof(double) * width;          // Row [maps][height]
  at.columns = at.rows + sizeof(Row) * maps * height;      // Source [maps][width]
  at.staged = at.columns + sizeof(Source) * maps * width;  // float
  at.starts = at.staged + staged;
  at.lines = at.starts + sizeof(int32_t) * gradients * (width + 1);  // float [lines][line(width)]
  at.bytes = at.lines + sizeof(float) * lines * line(width);         // starts: int32 [gradients][width + 1]
  return at;
}

// With more classes than this the registers (255 per thread) do not hold everything; set in a loss's .cu.
template <class Loss>
constexpr int kMostInRegisters = Loss::kMaps == 1 ? 21 : 16;

// ---- one block -----------------------------------------------------------------------------------------

template <class Loss, int C, bool kGrad>
class LossBlock {
 public:
  static constexpr int kMaps = Loss::kMaps;
  static constexpr bool kSharedSteps = kGrad && C > kMostInRegisters<Loss>;
  static constexpr bool kStaged = Loss::kTeachers && C > 0;
  using Steps = std::conditional_t<kSharedSteps, Strided, Values<C>>;

  // The number of lines of shared memory, one float per column each: for the steps of each map, which the
  // gradient replaces when it is added up over the columns, or for that gradient alone; for C = 0 for the
  // scratch arrays.
  __host__ UDAS_DEVICE static int lines(int classes) {
    if (C == 0) return Loss::kScratch * classes;
    return kGrad ? (kSharedSteps ? kMaps : 1) * C : 0;
  }

  // The rows of a block's table for each map.
  __host__ UDAS_DEVICE static int table_height(const Tiling& tiling) {
    return C > 0 ? kTileHeight : tiling.tile_height;
  }

  __host__ UDAS_DEVICE static size_t staged_bytes(const LossTask& task) {
    return C > 0 ? shared_rows_bytes(task.teachers, task.classes, task.columns)
                 : line_bytes(kMaps, task.classes, task.columns);
  }

  UDAS_DEVICE LossBlock(const LossTask& task, unsigned char* shared)
      : task_(task), tile_(task.tiling, blockIdx.x) {
    const LossLayout at = loss_layout(task, height(), width(), kMaps, staged_bytes(task), 0);
    sums_ = reinterpret_cast<double*>(shared + at.sums);
    rows_ = reinterpret_cast<Row*>(shared + at.rows);
    columns_ = reinterpret_cast<Source*>(shared + at.columns);
    starts_ = reinterpret_cast<int32_t*>(shared + at.starts);
    lines_ = reinterpret_cast<float*>(shared + at.lines);
    staged_ = reinterpret_cast<float*>(shared + at.staged);
    if constexpr (kStaged) teachers_.keep_in(shared + at.staged, task.columns);
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
      if constexpr (kSharedSteps) logits_[m].keep_in(own_line(m * C));
    }
    if constexpr (C == 0) {
      for (int g = 0; g < Loss::kScratch; ++g) gradient_[g] = Values<0>{own_line(g * task.classes)};
    }
  }

  UDAS_DEVICE void run() {
    tables();
    const int x = threadIdx.x;
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
      clear(above_[m]);
      clear(below_[m]);
    }
    walk(x < tile_.columns ? x : -1);
    add_up();
  }

 private:
  // Constants where registers are scarce.
  UDAS_DEVICE int width() const { return C > 0 && !Loss::kTeachers ? kTileWidth : task_.tiling.tile_width; }
  UDAS_DEVICE int height() const { return table_height(task_.tiling); }
  UDAS_DEVICE Classes<C> classes() const { return {task_.classes}; }
  UDAS_DEVICE int maps() const { return kMaps + (Loss::kTeachers ? task_.teachers : 0); }

  // This thread's column of the lines from `first` on.
  UDAS_DEVICE Strided own_line(int first) const {
    return {lines_ + first * line(width()) + threadIdx.x, line(width())};
  }
  // The first of the lines through which the gradient of map `m` is added up.
  UDAS_DEVICE float* lines_of(int m) const {
    return lines_ + (C == 0 ? m * task_.classes : kSharedSteps ? m * C : 0) * line(width());
  }
  UDAS_DEVICE const Row& row(int map, int y) const { return rows_[map * height() + y]; }
  UDAS_DEVICE const Source& column(int map, int x) const { return columns_[map * width() + x]; }

  // Fills in the sources of the tile's rows and columns for every map, and where the runs of columns start.
  UDAS_DEVICE void tables() {
    for (int i = threadIdx.x; i < maps() * height(); i += width())
      rows_[i] = row_of(task_.tiling, task_.maps[i / height()], tile_, i % height());
    const int x = threadIdx.x, last = tile_.columns - 1;
    for (int m = 0; m < maps(); ++m)
      columns_[m * width() + x] = column_position(task_.tiling, task_.maps[m], tile_.x + min(x, last));
    __syncthreads();
    for (int m = 0; kGrad && m < kMaps && x <= last; ++m) {
      if (x == 0 || run_of(m, x) != run_of(m, x - 1)) starts(m)[run_of(m, x)] = x;
      if (x == last) starts(m)[run_of(m, x) + 1] = x + 1;
    }
    __syncthreads();
  }

  // Neighbouring columns with the same low make a run. Upsampling, the lows of neighbouring runs are
  // neighbours; downsampling, every column is a run.
  UDAS_DEVICE int run_of(int map, int x) const {
    const bool upwards = task_.maps[map].width <= task_.tiling.width;
    return upwards ? column(map, x).low - column(map, 0).low : x;
  }
  // The first columns of the runs, and behind the last run the number of columns.
  UDAS_DEVICE int32_t* starts(int map) const { return starts_ + map * (width() + 1); }

  // Walks down column `x` of the tile; -1: outside of the image, which only takes part in the barriers.
  UDAS_DEVICE void walk(int x) {
    const bool inside = x >= 0;
    const Tiling& tiling = task_.tiling;
#pragma unroll
    for (int m = 0; m < kMaps; ++m) keep_line(m);
    int64_t at = (tile_.sample * tiling.height + tile_.y) * tiling.width + tile_.x + (inside ? x : 0);
    Sides next = load_sides<Loss>(task_, at);
#pragma unroll 1
    for (int y = 0; y < tile_.rows; ++y, at += tiling.width) {
      Pixel pixel = resolve<Loss>(task_, next);
      if (y + 1 < tile_.rows) next = load_sides<Loss>(task_, at + tiling.width);
      pixel.active = pixel.active && inside;
      pixel.incoming = incoming(inside ? x : 0, y);
#pragma unroll
      for (int m = 0; m < kMaps; ++m) {
        const Row at_row = row(m, y);
        if (kGrad && C > 0 && at_row.left > 0) leave_rows(m, row(m, y - 1).low, at_row.left);
        logits_[m].move(task_.maps[m], tile_.sample, at_row, column(m, threadIdx.x),
                        task_.inverse_temperature);
      }
      if constexpr (kStaged) move_teachers(y);
      float loss = 0.0f;
      if (pixel.active) {
        loss = pixel.weight * pixel_loss(pixel, y);
        total_ += loss;
        count_ += pixel.count;
        if (kGrad && C > 0) collect(y);
      }
      if (kGrad && C == 0) collect_columns(pixel.active, y);
      if (inside && task_.loss_map != nullptr) task_.loss_map[at] = loss;
    }
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
      const Row at_row = row(m, tile_.rows - 1);
      if (kGrad && C > 0) leave_rows(m, at_row.low, at_row.high - at_row.low + 1);
    }
  }

  UDAS_DEVICE void keep_line(int m) {
    if constexpr (C == 0) {
      float* line = staged_ + m * task_.classes * task_.columns;
      logits_[m].keep_in(line, task_.classes, task_.columns, task_.maps[m], task_.tiling, column(m, 0).low,
                         column(m, threadIdx.x));
    }
  }

  UDAS_DEVICE void move_teachers(int y) {
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < task_.teachers; ++k) {
      const int m = kMaps + k;
      teachers_.move(k, task_.maps[m], task_.tiling, tile_.sample, row(m, y), &column(m, 0));
    }
    __syncthreads();
  }

  // The incoming gradient at row `y` of column `x`. Only upsample_backward has and reads one.
  UDAS_DEVICE Incoming incoming(int x, int y) const {
    const Map& map = task_.incoming;
    const int64_t at =
        tile_.sample * map.stride[0] + (tile_.y + y) * map.stride[2] + (tile_.x + x) * map.stride[3];
    return {static_cast<const float*>(map.data) + at, map.stride[1]};
  }

  // Pixel (threadIdx.x, y) as the losses of core/losses.h take it.
  struct View {
    LossBlock& block;
    const Incoming& from;
    int y, label;
    float weight;

    UDAS_DEVICE Classes<C> classes() const { return block.classes(); }
    UDAS_DEVICE int teachers() const { return block.task_.teachers; }
    UDAS_DEVICE float inverse_temperature() const { return block.task_.inverse_temperature; }
    UDAS_DEVICE float inverse_log_classes() const { return block.task_.inverse_log_classes; }
    UDAS_DEVICE const auto& logits(int m) const { return block.logits_[m]; }
    UDAS_DEVICE Values<C>& gradient(int i) const { return block.gradient_[i]; }
    UDAS_DEVICE const Incoming& incoming() const { return from; }
    // Through the last scratch array, where the teacher's softmax replaces its logits.
    UDAS_DEVICE Values<C> teacher(int k) const {
      Values<C>& to = block.gradient_[Loss::kScratch - 1];
      const int m = kMaps + k;
      const Map& map = block.task_.maps[m];
      if constexpr (kStaged) {
        block.teachers_.read(k, map, block.task_.tiling, &block.column(m, 0), to);
      } else {
        interpolate(map, block.tile_.sample, block.row(m, y), block.column(m, threadIdx.x),
                    block.task_.classes, to);
      }
      return to;
    }
    UDAS_DEVICE Values<C> target() const { return teacher(0); }
    // Both in the last scratch array, for one copy of what follows.
    template <class Body>
    UDAS_DEVICE float with_target(const Body& body) const {
      Values<C>& to = block.gradient_[Loss::kScratch - 1];
      if (teachers() > 0) {
        teacher(0);
      } else {
        const OneHot<float> of_label{label};
#pragma unroll
        for (int c = 0; c < classes(); ++c) to[c] = of_label[c];
      }
      return body(to);
    }
  };

  UDAS_DEVICE float pixel_loss(const Pixel& pixel, int y) {
    return Loss::template run<kGrad, float>(View{*this, pixel.incoming, y, pixel.label, pixel.weight});
  }

  // ---- the adjoint of the interpolation ----

  UDAS_DEVICE void clear(Values<C>& values) {
    if constexpr (C > 0) {
#pragma unroll
      for (int c = 0; c < C; ++c) values[c] = 0.0f;
    }
  }

  // Vertically, in registers.
  UDAS_DEVICE void collect(int y) {
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
      const float fraction = row(m, y).fraction;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        above_[m][c] = fmaf(1.0f - fraction, gradient_[m][c], above_[m][c]);
        below_[m][c] = fmaf(fraction, gradient_[m][c], below_[m][c]);
      }
    }
  }

  // Vertically, for C = 0: directly in the sums over columns.
  UDAS_DEVICE void collect_columns(bool active, int y) {
#pragma unroll
    for (int m = 0; m < kMaps && !active; ++m)
      for (int c = 0; c < task_.classes; ++c) gradient_[m][c] = 0.0f;
    __syncthreads();
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
      const Row& at = row(m, y);
      const bool fresh = y == 0 || row(m, y - 1).high < at.low;
      const bool fresh_below = y == 0 || row(m, y - 1).high < at.high;
      float *above = patch(m, at.low), *below = patch(m, at.high);
      add_columns(m, lines_of(m), [&](int to, float sum) {
        above[to] = fmaf(1.0f - at.fraction, sum, fresh ? 0.0f : above[to]);
        if (at.high > at.low) below[to] = fmaf(at.fraction, sum, fresh_below ? 0.0f : below[to]);
      });
    }
    __syncthreads();
  }

  // Adds up the gradients collected for `count` low-resolution rows from `low` on, which the walk leaves.
  UDAS_DEVICE void leave_rows(int m, int low, int count) {
#pragma unroll 1
    for (int r = low; r < low + count; ++r) {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        lines_of(m)[c * line(width()) + threadIdx.x] = above_[m][c];
        above_[m][c] = below_[m][c];
        below_[m][c] = 0.0f;
      }
      __syncthreads();
      float* to_row = patch(m, r);
      add_columns(m, lines_of(m), [&](int to, float sum) { to_row[to] = sum; });
      __syncthreads();
    }
  }

  // Low-resolution row `r` of the tile's patch: [columns, C].
  UDAS_DEVICE float* patch(int map, int r) const {
    const Footprint& room = task_.footprint[map];
    const int64_t line = static_cast<int64_t>(tile_.index) * room.rows + (r - row(map, 0).low);
    return task_.partial[map] + line * room.columns * classes();
  }

  // Horizontally: put(place in a row of the patch, sum) for each low-resolution column and class, the sum
  // over its pixel columns from left to right. A thread has a run and some classes: it sums what goes to the
  // run's low and what goes to the right of it, and leaves the latter in the place of the run's first value
  // for the next run.
  template <class Put>
  UDAS_DEVICE void add_columns(int map, float* lines, const Put& put) {
    constexpr int kTogether = 3;
    const Source* columns = &column(map, 0);
    const int32_t* start = starts(map);
    const int abreast = (classes() + kTogether - 1) / kTogether;
    const int items = (run_of(map, tile_.columns - 1) + 1) * abreast;
    for (int first = 0; first < items; first += width()) {
      const int item = first + threadIdx.x, run = min(item, items - 1) / abreast, lane = item % abreast;
      const int from = start[run], to = item < items ? start[run + 1] : from;
      const Source& at = columns[from];
      const auto own = [&](int k) { return lane + k * abreast < classes(); };
      float *values[kTogether], sum[kTogether] = {}, right[kTogether] = {};
#pragma unroll
      for (int k = 0; k < kTogether; ++k)
        values[k] = lines + (own(k) ? lane + k * abreast : lane) * line(width());
#pragma unroll 4
      for (int x = from; x < to; ++x) {
        const float fraction = columns[x].fraction;
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          sum[k] += values[k][x];
          right[k] = fmaf(fraction, values[k][x], right[k]);
        }
      }
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        if (item < items && own(k)) values[k][from] = right[k];
      }
      __syncthreads();
      const int to_patch = (at.low - columns[0].low) * classes() + lane;
      const bool carries = run > 0 && columns[from - 1].high == at.low;
      const bool last = at.high > at.low && (to == tile_.columns || columns[to].low != at.high);
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        if (item >= items || !own(k)) continue;
        const float carried = carries ? values[k][start[run - 1]] : 0.0f;
        put(to_patch + k * abreast, sum[k] - right[k] + carried);
        if (last) put(to_patch + classes() + k * abreast, right[k]);
      }
    }
  }

  // The tile's loss and count, added as a tree of fixed shape.
  UDAS_DEVICE void add_up() {
    const int t = threadIdx.x;
    double* counts = sums_ + width();
    sums_[t] = total_;
    counts[t] = count_;
    for (int n = width(); n > 1;) {
      const int half = (n + 1) / 2;
      __syncthreads();
      if (t < n - half) {
        sums_[t] += sums_[t + half];
        counts[t] += counts[t + half];
      }
      n = half;
    }
    if (t == 0) {
      task_.totals[tile_.index] = sums_[0];
      task_.counts[tile_.index] = counts[0];
    }
  }

  const LossTask& task_;
  const Tile tile_;
  double* sums_;
  Row* rows_;
  Source* columns_;
  float* staged_;
  int32_t* starts_;
  float* lines_;
  Logits<C, Loss::kScores, Steps> logits_[kMaps];
  Values<C> gradient_[Loss::kScratch];
  Values<C> above_[kMaps], below_[kMaps];
  float total_ = 0.0f, count_ = 0.0f;
  SharedRows<C> teachers_;
};

template <class Loss, int C, bool kGrad>
__global__ void __launch_bounds__(kTileWidth, 2) loss_kernel(UDAS_PARAMETER LossTask task) {
  LossBlock<Loss, C, kGrad>(task, shared_memory()).run();
}

template <class Loss, int C, bool kGrad>
cudaError_t launch_loss(const LossTask& task, cudaStream_t stream) {
  const int64_t tiles = tile_count(task.tiling);
  if (tiles == 0) return cudaSuccess;
  using Block = LossBlock<Loss, C, kGrad>;
  const int width = task.tiling.tile_width;
  const size_t bytes = loss_layout(task, Block::table_height(task.tiling), width, Loss::kMaps,
                                   Block::staged_bytes(task), Block::lines(task.classes))
                           .bytes;
  return launch(loss_kernel<Loss, C, kGrad>, dim3(static_cast<unsigned>(tiles)), width, bytes, stream, task);
}

template <class Loss>
cudaError_t run_loss(const LossTask& task, cudaStream_t stream) {
  return with_classes(task.classes, [&](auto classes) {
    constexpr int C = decltype(classes)::value;
    return task.with_grad ? launch_loss<Loss, C, true>(task, stream)
                          : launch_loss<Loss, C, false>(task, stream);
  });
}

}  // namespace cuda
}  // namespace udas
