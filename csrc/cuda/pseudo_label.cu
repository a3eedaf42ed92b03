// Pseudo-labels: K views upsampled, softmax, the view with the largest confidence or the mean of the views,
// arg-max, threshold and histogram, in one pass.
//
// One thread per column, as everywhere (common.cuh). For the maximum, views are outside and rows inside, so
// that a view's two rows stay in registers; the best so far of each pixel waits in shared memory, 5 bytes.
// For the mean, all views of a pixel are needed at once: their rows are in shared memory (SharedRows), and
// where the class count is not unrolled one after the other is (Logits<0>).
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

// `room`: bytes for the views of the mean, SharedRows; not unrolled, for the line of Logits<0> and scratch.
constexpr __host__ UDAS_DEVICE PseudoLabelLayout pseudo_label_layout(int height, int width, int views,
                                                                     bool mean, int classes, size_t room) {
  PseudoLabelLayout at{};
  at.rows = 0;                                          // Row [views][height]
  at.columns = at.rows + sizeof(Row) * views * height;  // Source [views][width], for the mean
  at.confidence = at.columns + (mean ? sizeof(Source) * views * width : 0);  // float [height][width]
  at.room = at.confidence + sizeof(float) * height * width;
  at.histogram = at.room;  // unsigned [classes][2][64], from when the views are done with
  const size_t histogram = classes <= kMostSharedHistogram ? sizeof(unsigned) * classes * kCells : 0;
  at.label = at.room + (room > histogram ? room : histogram);  // uint8 [height][width]
  at.bytes = at.label + sizeof(uint8_t) * height * width;
  return at;
}

__host__ UDAS_DEVICE size_t room_of(const PseudoLabelTask& task, int width, bool unrolled) {
  if (unrolled) return task.mean ? shared_rows_bytes(task.views, task.classes, task.columns) : 0;
  const size_t scratch = task.mean ? sizeof(float) * 2 * task.classes * line(width) : 0;
  return line_bytes(1, task.classes, task.columns) + scratch;
}

static_assert(pseudo_label_layout(8, kTileWidth, kMaxViews, false, kMostSharedHistogram, 0).bytes <=
                  kMostShared,
              "the widest tile must always do for the maximum");

template <int C, bool kMean>
class PseudoLabelBlock {
 public:
  UDAS_DEVICE PseudoLabelBlock(const PseudoLabelTask& task, unsigned char* shared)
      : task_(task), tile_(task.tiling, blockIdx.x) {
    const PseudoLabelLayout at =
        pseudo_label_layout(height(), width(), task.views, kMean, classes(), room_of(task, width(), C > 0));
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
    if (shared_histogram()) {
      for (int i = threadIdx.x; i < classes() * kCells / 4; i += width())
        reinterpret_cast<uint4*>(histogram_)[i] = {0, 0, 0, 0};
      __syncthreads();
    }
    write();
    if (shared_histogram()) {
      __syncthreads();
      for (int i = threadIdx.x; i < classes() * kCells / 4; i += width()) {
        const uint4 counts = reinterpret_cast<const uint4*>(histogram_)[i];
        add_to_image(4 * i, counts.x);
        add_to_image(4 * i + 1, counts.y);
        add_to_image(4 * i + 2, counts.z);
        add_to_image(4 * i + 3, counts.w);
      }
    }
  }

 private:
  // A constant where the shared memory of the widest tile always suffices.
  UDAS_DEVICE int width() const { return C > 0 && !kMean ? kTileWidth : task_.tiling.tile_width; }
  UDAS_DEVICE int height() const { return task_.tiling.tile_height; }
  UDAS_DEVICE Classes<C> classes() const { return {task_.classes}; }
  UDAS_DEVICE bool shared_histogram() const { return classes() <= kMostSharedHistogram; }

  // Where column `x` of the tile reads view `view`, its flip undone.
  UDAS_DEVICE Source column_of(int view, int x) const {
    const int at = tile_.x + x;
    const bool flipped =
        (task_.flipped_views >> view & 1) != 0 ||
        (task_.flips != nullptr && load_flag(task_.flips, view * task_.tiling.samples + tile_.sample));
    return column_position(task_.tiling, task_.maps[view], flipped ? task_.tiling.width - 1 - at : at);
  }

  UDAS_DEVICE void tables() {
    for (int i = threadIdx.x; i < task_.views * height(); i += width())
      rows_[i] = row_of(task_.tiling, task_.maps[i / height()], tile_, i % height());
    if (kMean) {
      const int x = min(static_cast<int>(threadIdx.x), tile_.columns - 1);
      for (int view = 0; view < task_.views; ++view)
        columns_[view * width() + threadIdx.x] = column_of(view, x);
    }
    __syncthreads();
  }

  UDAS_DEVICE void keep_line(Logits<0, true>& logits, int view, int first, const Source& column) const {
    logits.keep_in(reinterpret_cast<float*>(room_), task_.classes, task_.columns, task_.maps[view],
                   task_.tiling, first, column);
  }

  // The first of equal views wins.
  UDAS_DEVICE void best_of_views(int view, const Source& column) {
    Logits<C, true> logits;
    if constexpr (C == 0) {
      const int first = min(column_of(view, 0).low, column_of(view, tile_.columns - 1).low);
      keep_line(logits, view, first, column);
    }
    const Row* row = rows_ + view * height();
    float* confidence = confidence_ + threadIdx.x;
    uint8_t* label = label_ + threadIdx.x;
#pragma unroll 1
    for (int y = 0; y < tile_.rows; ++y, ++row, confidence += width(), label += width()) {
      logits.move(task_.maps[view], tile_.sample, *row, column, task_.inverse_temperature);
      Prediction<float> found = most_probable<float>(logits, task_.inverse_temperature, classes());
      asm("" : "+r"(found.label));  // else the compiler selects among bytes, at one instruction more each
      const bool better = found.confidence > *confidence;
      if ((view == 0) | better) {  // not ||, which would be a branch more
        *confidence = found.confidence;
        *label = static_cast<uint8_t>(found.label);
      }
    }
  }

  UDAS_DEVICE void mean_of_views() {
    Values<C> mean, scratch;
    if constexpr (C == 0) {
      float* first = reinterpret_cast<float*>(room_) + classes() * task_.columns + threadIdx.x;
      mean = Values<0>{{first, line(width())}};
      scratch = Values<0>{{first + classes() * line(width()), line(width())}};
    } else {
      shared_.keep_in(room_, task_.columns);
    }
    const float share = 1.0f / static_cast<float>(task_.views);
#pragma unroll 1
    for (int y = 0; y < tile_.rows; ++y) {
      if constexpr (C > 0) {
        __syncthreads();
#pragma unroll 1
        for (int view = 0; view < task_.views; ++view) {
          shared_.move(view, task_.maps[view], task_.tiling, tile_.sample, rows_[view * height() + y],
                       columns_ + view * width());
        }
        __syncthreads();
      }
#pragma unroll
      for (int c = 0; c < classes(); ++c) mean[c] = 0.0f;
#pragma unroll 1
      for (int view = 0; view < task_.views; ++view) {
        const Map& map = task_.maps[view];
        const Source* columns = columns_ + view * width();
        if constexpr (C == 0) {
          const Source& column = columns[threadIdx.x];
          Logits<0, true> logits;
          keep_line(logits, view, min(columns[0].low, columns[width() - 1].low), column);
          logits.move(map, tile_.sample, rows_[view * height() + y], column);
          add_softmax<float>(logits, task_.inverse_temperature, share, classes(), mean, scratch);
        } else {
          shared_.read(view, map, task_.tiling, columns, scratch);
          add_softmax<float>(scratch, task_.inverse_temperature, share, classes(), mean, scratch);
        }
      }
      Prediction<float> found = arg_max<float>(mean, classes());
      asm("" : "+r"(found.label));
      const int at = y * width() + threadIdx.x;
      confidence_[at] = found.confidence;
      label_[at] = static_cast<uint8_t>(found.label);
    }
  }

  // Four neighbours a thread: threshold, stores of 16 and 4 bytes where the image's width allows it, and the
  // histogram, where equal cells in a row are counted before they are added.
  UDAS_DEVICE void write() {
    const Tiling& tiling = task_.tiling;
    const int quads = width() / 4;
    const int x = threadIdx.x % quads * 4;
    const int pixels = min(4, tile_.columns - x);
    int cell = 0;
    unsigned count = 0;
    for (int y = threadIdx.x / quads; y < tile_.rows && pixels > 0; y += width() / quads) {
      const int from = y * width() + x;
      const int64_t to = (tile_.sample * tiling.height + tile_.y + y) * tiling.width + tile_.x + x;
      const float4 four = *reinterpret_cast<const float4*>(confidence_ + from);
      const uchar4 found = *reinterpret_cast<const uchar4*>(label_ + from);
      const float confidence[4] = {four.x, four.y, four.z, four.w};
      uint8_t label[4] = {found.x, found.y, found.z, found.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int own = label[i];
        const float limit =
            task_.class_threshold != nullptr ? __ldg(task_.class_threshold + own) : task_.threshold;
        const bool kept = confidence[i] >= limit;
        if (!kept) label[i] = task_.ignore_label;
        const int next = own * kCells + (kept ? 0 : kBins) + confidence_bin(confidence[i]);
        if (i < pixels && next != cell) {
          add(cell, count);
          cell = next;
          count = 0;
        }
        if (i < pixels) ++count;
      }
      if (tiling.width % 4 == 0) {
        *reinterpret_cast<float4*>(task_.confidence + to) = four;
        *reinterpret_cast<uchar4*>(task_.label + to) = make_uchar4(label[0], label[1], label[2], label[3]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i >= pixels) continue;
          task_.confidence[to + i] = confidence[i];
          task_.label[to + i] = label[i];
        }
      }
    }
    add(cell, count);
  }

  UDAS_DEVICE void add(int cell, unsigned count) {
    if (shared_histogram()) {
      atomicAdd(histogram_ + cell, count);
    } else {
      add_to_image(cell, count);
    }
  }

  UDAS_DEVICE void add_to_image(int cell, unsigned count) {
    if (count > 0) atomicAdd(task_.histogram + cell, static_cast<unsigned long long>(count));
  }

  const PseudoLabelTask& task_;
  const Tile tile_;
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
                                           task.classes, room_of(task, tiling.tile_width, C > 0))
                           .bytes;
  return launch(pseudo_label_kernel<C, kMean>, dim3(static_cast<unsigned>(tile_count(tiling))),
                tiling.tile_width, bytes, stream, task);
}

}  // namespace

void plan_pseudo_label(PseudoLabelTask& task) {
  const bool unrolled = is_unrolled(task.classes);
  const auto shared = [&](int height, int width) {
    task.columns = most_columns(task.maps, task.views, width, task.tiling);
    const size_t room = room_of(task, width, unrolled);
    return pseudo_label_layout(height, width, task.views, task.mean, task.classes, room).bytes;
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
