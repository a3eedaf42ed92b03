// Pseudo-labels: K views upsampled, softmax, the view with the largest confidence or the mean of the views,
// arg-max, threshold and histogram, in one pass.
//
// One thread per column, as everywhere (common.cuh). For the maximum, views are outside and rows inside, so
// that a view's two rows stay in registers; the best so far of each pixel waits in shared memory, 5 bytes.
// For the mean, all views of a pixel are needed at once: their rows are in shared memory (SharedRows), and
// where the class count is not unrolled they are read anew at each pixel.
//
// The floor, with P pixels: bytes 5·P written, K·N·C·h·w·(2 or 4) read; exps K·P·C; FMAs and the like, per
// pixel, class and view: 5 (interpolation, maximum with its label 3, sum). The mean has 7 and half a load
// of shared memory.
#include "../core/predict.h"
#include "common.cuh"

namespace udas {
namespace cuda {
namespace {

constexpr int kCells = 2 * kBins;         // of a class in the histogram
constexpr int kMostSharedHistogram = 32;  // classes

struct PseudoLabelLayout {
  size_t rows, columns, confidence, histogram, room, label, bytes;
};

// `room`: bytes for the views of the mean, SharedRows or scratch.
__host__ UDAS_DEVICE PseudoLabelLayout pseudo_label_layout(int height, int width, int views, bool mean,
                                                           int classes, size_t room) {
  PseudoLabelLayout at;
  at.rows = 0;                                          // Row [views][height]
  at.columns = at.rows + sizeof(Row) * views * height;  // Source [views][width], for the mean
  at.confidence = at.columns + (mean ? sizeof(Source) * views * width : 0);  // float [height][width]
  at.histogram = at.confidence + sizeof(float) * height * width;             // unsigned [classes][2][64]
  at.room = at.histogram + (classes <= kMostSharedHistogram ? sizeof(unsigned) * classes * kCells : 0);
  at.label = at.room + room;  // uint8 [height][width]
  at.bytes = at.label + sizeof(uint8_t) * height * width;
  return at;
}

__host__ UDAS_DEVICE size_t room_of(const PseudoLabelTask& task, int width) {
  if (!task.mean) return 0;
  if (task.columns > 0) return shared_rows_bytes(task.views, task.classes, task.columns);
  return sizeof(float) * 2 * task.classes * line(width);
}

template <int C, bool kMean>
class PseudoLabelBlock {
 public:
  UDAS_DEVICE PseudoLabelBlock(const PseudoLabelTask& task, unsigned char* shared)
      : task_(task),
        tile_(task.tiling, blockIdx.x),
        height_(task.tiling.tile_height),
        width_(task.tiling.tile_width) {
    const PseudoLabelLayout at =
        pseudo_label_layout(height_, width_, task.views, kMean, task.classes, room_of(task, width_));
    rows_ = reinterpret_cast<Row*>(shared + at.rows);
    columns_ = reinterpret_cast<Source*>(shared + at.columns);
    confidence_ = reinterpret_cast<float*>(shared + at.confidence);
    histogram_ = reinterpret_cast<unsigned*>(shared + at.histogram);
    room_ = shared + at.room;
    label_ = shared + at.label;
  }

  UDAS_DEVICE void run() {
    tables();
    const int x = min(static_cast<int>(threadIdx.x), tile_.columns - 1);
    if constexpr (kMean) {
      mean_of_views();
    } else {
      for (int view = 0; view < task_.views; ++view) best_of_views(view, column_of(view, x));
    }
    __syncthreads();
    write();
    if (shared_histogram()) {
      __syncthreads();
      for (int i = threadIdx.x; i < task_.classes * kCells; i += width_) {
        if (histogram_[i] != 0)
          atomicAdd(task_.histogram + i, static_cast<unsigned long long>(histogram_[i]));
      }
    }
  }

 private:
  UDAS_DEVICE bool shared_histogram() const { return task_.classes <= kMostSharedHistogram; }

  // Where column `x` of the tile reads view `view`, its flip undone.
  UDAS_DEVICE Source column_of(int view, int x) const {
    const int at = tile_.x + x;
    const bool flipped =
        (task_.flipped_views >> view & 1) != 0 ||
        (task_.flips != nullptr && load_flag(task_.flips, view * task_.tiling.samples + tile_.sample));
    return column_position(task_.tiling, task_.maps[view], flipped ? task_.tiling.width - 1 - at : at);
  }

  UDAS_DEVICE void tables() {
    for (int i = threadIdx.x; i < task_.views * height_; i += width_)
      rows_[i] = row_of(task_.tiling, task_.maps[i / height_], tile_, i % height_);
    if (kMean) {
      const int x = min(static_cast<int>(threadIdx.x), tile_.columns - 1);
      for (int view = 0; view < task_.views; ++view)
        columns_[view * width_ + threadIdx.x] = column_of(view, x);
    }
    if (shared_histogram()) {
      for (int i = threadIdx.x; i < task_.classes * kCells; i += width_) histogram_[i] = 0;
    }
    __syncthreads();
  }

  // The first of equal views wins.
  UDAS_DEVICE void best_of_views(int view, const Source& column) {
    const Row* rows = rows_ + view * height_;
    Logits<C, true> logits;
#pragma unroll 1
    for (int y = 0; y < tile_.rows; ++y) {
      logits.move(task_.maps[view], tile_.sample, rows[y], column, task_.inverse_temperature);
      Prediction<float> found =
          most_probable<float>(logits, task_.inverse_temperature, Classes<C>{task_.classes});
      asm("" : "+r"(found.label));  // else the compiler selects among bytes, at one instruction more each
      const int at = y * width_ + threadIdx.x;
      if (view == 0 || found.confidence > confidence_[at]) {
        confidence_[at] = found.confidence;
        label_[at] = static_cast<uint8_t>(found.label);
      }
    }
  }

  UDAS_DEVICE void mean_of_views() {
    Values<C> mean, scratch;
    if constexpr (C == 0) {
      float* first = reinterpret_cast<float*>(room_) + threadIdx.x;
      mean = Values<0>{{first, line(width_)}};
      scratch = Values<0>{{first + task_.classes * line(width_), line(width_)}};
    } else {
      shared_.keep_in(room_, task_.columns);
    }
    const Classes<C> classes{task_.classes};
    const float share = 1.0f / static_cast<float>(task_.views);
#pragma unroll 1
    for (int y = 0; y < tile_.rows; ++y) {
      if constexpr (C > 0) {
        __syncthreads();
#pragma unroll 1
        for (int view = 0; view < task_.views; ++view) {
          shared_.move(view, task_.maps[view], task_.tiling, tile_.sample, rows_[view * height_ + y],
                       columns_ + view * width_);
        }
        __syncthreads();
      }
#pragma unroll
      for (int c = 0; c < classes; ++c) mean[c] = 0.0f;
#pragma unroll 1
      for (int view = 0; view < task_.views; ++view) {
        const Map& map = task_.maps[view];
        const Source* columns = columns_ + view * width_;
        if constexpr (C == 0) {
          interpolate<C>(map, tile_.sample, rows_[view * height_ + y], columns[threadIdx.x], task_.classes,
                         scratch);
        } else {
          shared_.read(view, map, task_.tiling, columns, scratch);
        }
        add_softmax<float>(scratch, task_.inverse_temperature, share, classes, mean, scratch);
      }
      Prediction<float> found = arg_max<float>(mean, classes);
      asm("" : "+r"(found.label));
      const int at = y * width_ + threadIdx.x;
      confidence_[at] = found.confidence;
      label_[at] = static_cast<uint8_t>(found.label);
    }
  }

  // Four neighbours a thread: threshold, stores of 16 and 4 bytes where the image's width allows it, and the
  // histogram, where equal cells in a row are counted before they are added.
  UDAS_DEVICE void write() {
    const Tiling& tiling = task_.tiling;
    const int quads = width_ / 4;
    const int x = threadIdx.x % quads * 4;
    const int pixels = min(4, tile_.columns - x);
    int cell = -1;
    unsigned count = 0;
    for (int y = threadIdx.x / quads; y < tile_.rows && pixels > 0; y += width_ / quads) {
      const int from = y * width_ + x;
      const int64_t to = (tile_.sample * tiling.height + tile_.y + y) * tiling.width + tile_.x + x;
      uint8_t label[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i >= pixels) continue;
        const float confidence = confidence_[from + i];
        const int found = label_[from + i];
        const float limit =
            task_.class_threshold != nullptr ? __ldg(task_.class_threshold + found) : task_.threshold;
        const bool kept = confidence >= limit;
        label[i] = kept ? static_cast<uint8_t>(found) : task_.ignore_label;
        const int next = (found * 2 + (kept ? 0 : 1)) * kBins + confidence_bin(confidence);
        if (next != cell) {
          add(cell, count);
          cell = next;
          count = 0;
        }
        ++count;
      }
      if (tiling.width % 4 == 0) {
        *reinterpret_cast<float4*>(task_.confidence + to) =
            *reinterpret_cast<const float4*>(confidence_ + from);
        *reinterpret_cast<uchar4*>(task_.label + to) = make_uchar4(label[0], label[1], label[2], label[3]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i >= pixels) continue;
          task_.confidence[to + i] = confidence_[from + i];
          task_.label[to + i] = label[i];
        }
      }
    }
    add(cell, count);
  }

  UDAS_DEVICE void add(int cell, unsigned count) {
    if (count == 0) return;
    if (shared_histogram()) {
      atomicAdd(histogram_ + cell, count);
    } else {
      atomicAdd(task_.histogram + cell, static_cast<unsigned long long>(count));
    }
  }

  const PseudoLabelTask& task_;
  const Tile tile_;
  const int height_, width_;
  Row* rows_;
  Source* columns_;
  float* confidence_;
  unsigned* histogram_;
  unsigned char* room_;
  SharedRows<C> shared_;  // of the views, for the mean
  uint8_t* label_;
};

template <int C, bool kMean>
__global__ void __launch_bounds__(kTileWidth, kMean ? 3 : 4)
    pseudo_label_kernel(UDAS_PARAMETER PseudoLabelTask task) {
  PseudoLabelBlock<C, kMean>(task, shared_memory()).run();
}

template <int C, bool kMean>
cudaError_t run(const PseudoLabelTask& task, cudaStream_t stream) {
  const Tiling& tiling = task.tiling;
  const size_t bytes = pseudo_label_layout(tiling.tile_height, tiling.tile_width, task.views, kMean,
                                           task.classes, room_of(task, tiling.tile_width))
                           .bytes;
  return launch(pseudo_label_kernel<C, kMean>, dim3(static_cast<unsigned>(tile_count(tiling))),
                tiling.tile_width, bytes, stream, task);
}

}  // namespace

void plan_pseudo_label(PseudoLabelTask& task) {
  const bool staged = task.mean && is_unrolled(task.classes);
  const auto shared = [&](int height, int width) {
    task.columns = staged ? most_columns(task.maps, task.views, width, task.tiling) : 0;
    return pseudo_label_layout(height, width, task.views, task.mean, task.classes, room_of(task, width))
        .bytes;
  };
  choose_tiles(task.tiling, widest_tile(task.classes), task.mean ? 3 : 4, shared);
}

cudaError_t run_pseudo_label(const PseudoLabelTask& task, cudaStream_t stream) {
  const cudaError_t zeroed =
      cudaMemsetAsync(task.histogram, 0, sizeof(*task.histogram) * task.classes * kCells, stream);
  if (zeroed != cudaSuccess || tile_count(task.tiling) == 0) return zeroed;
  return with_classes(task.classes, [&](auto classes) {
    constexpr int C = decltype(classes)::value;
    return task.mean ? run<C, true>(task, stream) : run<C, false>(task, stream);
  });
}

}  // namespace cuda
}  // namespace udas
