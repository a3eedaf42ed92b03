#pragma once
// Shared by all kernels: loads that widen to float32, tiles, and the interpolation of a pixel's logits.
//
// One thread works on one full-resolution column of a tile and walks down its rows. The horizontal weights of
// a column are therefore computed once, and the two low-resolution rows it lies between are interpolated
// horizontally once each (2 loads per class through L1, for 8 pixels at stride 8) and stay in
// registers: one FMA per pixel and class remains. Low-resolution maps of any dtype, strides and size take the
// same path; only the speed depends on the ratio of the sizes.
//
// For more classes than are unrolled (C = 0 below) nothing per class stays in registers: rows are
// interpolated vertically in shared memory, where gradients live too.
#include <cuda_fp16.h>

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "../core/interpolate.h"
#include "../core/losses.h"
#include "task.h"

#define UDAS_DEVICE __device__ __forceinline__
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
#define UDAS_PARAMETER const
#else
#define UDAS_PARAMETER const __grid_constant__
#endif

// The class counts that are unrolled: each has kernels of its own.
#ifndef UDAS_UNROLLED
#define UDAS_UNROLLED 2, 11, 13, 16, 19, 21
#endif

namespace udas {
namespace cuda {

constexpr int kTileWidth = 128;
constexpr int kTileHeight = 32;
constexpr int kMostShared = 48 * 1024;  // bytes that a block can use on every device without opting in

// ---- loads and stores --------------------------------------------------------------------------------

UDAS_DEVICE float widen(float value) { return value; }
UDAS_DEVICE float widen(__half value) { return __half2float(value); }
UDAS_DEVICE float widen(uint8_t value) { return static_cast<float>(value); }

// bfloat16: the upper half of a float32.
struct Brain {
  uint16_t raw;
};
UDAS_DEVICE float widen(Brain value) { return __uint_as_float(static_cast<uint32_t>(value.raw) << 16); }

UDAS_DEVICE float load(const float* p) { return __ldg(p); }
UDAS_DEVICE float load(const __half* p) {
  return widen(__ushort_as_half(__ldg(reinterpret_cast<const unsigned short*>(p))));
}
UDAS_DEVICE float load(const Brain* p) {
  return widen(Brain{__ldg(reinterpret_cast<const unsigned short*>(p))});
}

// Calls body with `data` as a pointer to the elements of logits of `type`.
template <class Body>
UDAS_DEVICE void typed(const void* data, Type type, const Body& body) {
  if (type == Type::float32) {
    body(static_cast<const float*>(data));
  } else if (type == Type::float16) {
    body(static_cast<const __half*>(data));
  } else {
    body(static_cast<const Brain*>(data));
  }
}

UDAS_DEVICE int64_t load_label(const Labels& labels, int64_t at) {
  return labels.type == Type::uint8
             ? static_cast<int64_t>(__ldg(static_cast<const uint8_t*>(labels.data) + at))
             : __ldg(static_cast<const long long*>(labels.data) + at);
}

UDAS_DEVICE bool load_flag(const bool* flags, int64_t at) {
  return __ldg(reinterpret_cast<const uint8_t*>(flags) + at) != 0;
}

// ---- tiles -------------------------------------------------------------------------------------------

// The tile of block `index`: its sample and its pixels.
struct Tile {
  UDAS_DEVICE Tile(const Tiling& tiling, unsigned index)
      : sample(index / (tiling.down * tiling.across)), index(index) {
    const int within = index % (tiling.down * tiling.across);
    y = within / tiling.across * tiling.tile_height;
    x = within % tiling.across * tiling.tile_width;
    rows = min(tiling.tile_height, tiling.height - y);
    columns = min(tiling.tile_width, tiling.width - x);
  }
  int64_t sample;
  unsigned index;
  int y, x, rows, columns;
};

__host__ UDAS_DEVICE int64_t tile_count(const Tiling& tiling) {
  return tiling.samples * tiling.down * tiling.across;
}

// As udas::source, with fraction 0 where low == high.
UDAS_DEVICE Source position(int i, int in, int out, bool align_corners) {
  Source s = source(i, in, out, align_corners);
  if (s.low == s.high) s.fraction = 0.0f;
  return s;
}

// A row of a tile in a map, as a walk down the rows needs it. It reads the low row alone where `fraction` is
// 0, so that a value which is not finite goes no further than its own neighbours.
struct alignas(16) Row {
  int32_t low, high;  // the low-resolution rows around it, equal at the end of the map
  float fraction;     // of high
  uint16_t fresh;     // how many low-resolution rows it reads that the row above did not: 0, 1 or 2
  uint16_t left;      // how many of those around the row above it has left behind
};

static_assert(sizeof(Row) == 16 && sizeof(Source) % 4 == 0 && kTileWidth % 32 == 0,
              "the layouts of shared memory put floats after sources, and four floats after rows");

UDAS_DEVICE Row row_of(const Tiling& tiling, const Map& map, const Tile& tile, int y) {
  const auto at = [&](int i) {
    return position(tile.y + min(i, tile.rows - 1), map.height, tiling.height, tiling.align_corners);
  };
  const auto last_read = [](const Source& s) { return s.fraction > 0.0f ? s.high : s.low; };
  const Source own = at(y);
  Row row{own.low, own.high, own.fraction, 2, 0};
  if (y > 0) {
    const Source above = at(y - 1);
    const bool same = own.low == above.low && last_read(own) == last_read(above);
    row.fresh = static_cast<uint16_t>(same ? 0 : last_read(above) == own.low ? 1 : 2);
    row.left = static_cast<uint16_t>(min(own.low, above.high + 1) - above.low);
  }
  return row;
}

UDAS_DEVICE Source column_position(const Tiling& tiling, const Map& map, int x) {
  return position(x, map.width, tiling.width, tiling.align_corners);
}

// ---- shared memory and per-class scratch ---------------------------------------------------------------

UDAS_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return shared_bytes;
}

// In shared memory one class is a line of a tile's columns. Its length is odd, so that neither neighbouring
// columns nor neighbouring classes of one column share a bank.
__host__ UDAS_DEVICE int line(int columns) { return columns | 1; }

// C floats of a thread, in registers.
template <int C>
struct Values {
  UDAS_DEVICE float& operator[](int c) { return value[c]; }
  UDAS_DEVICE const float& operator[](int c) const { return value[c]; }
  float value[C];
};

// Any number of floats of a thread, in shared memory.
struct Strided {
  UDAS_DEVICE float& operator[](int c) const { return first[c * pitch]; }
  float* first;
  int pitch;
};

template <>
struct Values<0> : Strided {};

// The class count as the pixel functions of core/ take it: a constant where it is unrolled.
template <int C>
struct Classes {
  int count;
  UDAS_DEVICE operator int() const { return C; }
};

template <>
struct Classes<0> {
  int count;
  UDAS_DEVICE operator int() const { return count; }
};

// ---- interpolation -----------------------------------------------------------------------------------

UDAS_DEVICE float blend(float a, float b, float fraction) { return fmaf(fraction, b - a, a); }

// The low-resolution values left and right of a pixel in row `row`, class after class.
template <class T>
class Beside {
 public:
  UDAS_DEVICE Beside(const T* data, const Map& map, int64_t sample, int row, const Source& column)
      : left_(data + sample * map.stride[0] + row * map.stride[2] + column.low * map.stride[3]),
        right_(left_ + (column.high - column.low) * map.stride[3]) {}

  UDAS_DEVICE void next(const Map& map) {
    left_ += map.stride[1];
    right_ += map.stride[1];
  }

  UDAS_DEVICE float at(float across) const { return blend(load(left_), load(right_), across); }

 private:
  const T *left_, *right_;
};

// The logits of a thread's pixels in one map, row after row: as they are, or as the scores of core/losses.h,
// for which each low-resolution row is scaled and shifted by its maximum over the classes as it is read.
// `Steps` holds the differences between the two low-resolution rows around a pixel: registers, or shared
// memory where those would not be enough.
template <int C, bool kScores, class Steps = Values<C>>
class Logits {
 public:
  static constexpr bool kGivesScores = kScores;

  UDAS_DEVICE void keep_in(Strided steps) { step_ = steps; }

  // Moves to a pixel of `row` from the one above. Only rows that are not there yet are read; the lower row
  // becomes the upper one, unless it was shifted for a pixel.
  UDAS_DEVICE void move(const Map& map, int64_t sample, const Row& row, const Source& column,
                        float inverse_temperature = 1.0f) {
    below_fraction_ = row.fraction - 1.0f;  // -1 only where both rows are the low one
    if (row.fresh > 0 || disagree()) {
      if (row.fresh > 0) renew(map, sample, row, column, inverse_temperature);
      if (disagree()) recentre();
    }
  }

  UDAS_DEVICE float operator[](int c) const { return fmaf(below_fraction_, step_[c], lower_[c]); }

 private:
  // The largest score of a pixel must not be lower than this, for the sum of the exponentials to keep its
  // digits. It can be only where the two rows are sure of different classes.
  static constexpr float kLowest = -60.0f;

  UDAS_DEVICE void renew(const Map& map, int64_t sample, const Row& row, const Source& column,
                         float inverse_temperature) {
    const int below = row.fraction > 0.0f ? row.high : row.low;
    Values<C> upper;
#pragma unroll 1
    for (int rows = row.fresh > 1 || disagree() ? 2 : 1; rows > 0; --rows) {
#pragma unroll
      for (int c = 0; c < C; ++c) upper[c] = lower_[c];
      read(map, sample, rows > 1 ? row.low : below, column, inverse_temperature);
    }
#pragma unroll
    for (int c = 0; c < C; ++c) step_[c] = lower_[c] - upper[c];
    if (kScores) highest_ = highest_of_both(upper, lower_);
  }

  UDAS_DEVICE void read(const Map& map, int64_t sample, int row, const Source& column,
                        float inverse_temperature) {
    typed(map.data, map.type, [&](auto* data) {
      Beside from(data, map, sample, row, column);
#pragma unroll
      for (int c = 0; c < C; ++c, from.next(map)) lower_[c] = from.at(column.fraction);
    });
    if constexpr (kScores) {
      const float scale = inverse_temperature * kLog2E, shift = -scale * largest<float>(lower_, C);
#pragma unroll
      for (int c = 0; c < C; ++c) lower_[c] = fmaf(lower_[c], scale, shift);
    }
  }

  UDAS_DEVICE bool disagree() const { return kScores && !(highest_ > kLowest); }

  // A lower bound of the largest score between the two rows.
  UDAS_DEVICE static float highest_of_both(const Values<C>& upper, const Values<C>& lower) {
    float highest = fminf(upper[0], lower[0]);
#pragma unroll
    for (int c = 1; c < C; ++c) highest = fmaxf(highest, fminf(upper[c], lower[c]));
    return highest;
  }

  // Shifts the scores so that the largest of this pixel is 0.
  UDAS_DEVICE void recentre() {
    const float top = largest<float>(*this, C);
#pragma unroll
    for (int c = 0; c < C; ++c) lower_[c] -= top;
  }

  float below_fraction_;  // less 1: from the lower row upwards
  float highest_;         // highest_of_both the rows
  Values<C> lower_;
  Steps step_;
};

// Any number of classes: the block interpolates each pixel row vertically into shared memory, float
// [classes][columns], as far as its tile reaches, and a thread interpolates horizontally at each use. Where
// neighbours share low-resolution columns these lie side by side; downsampling, each thread has two of its
// own. All threads of a block must move together.
template <bool kScores, class Steps>
class Logits<0, kScores, Steps> {
 public:
  // `first`: the first low-resolution column that the tile reads; `column`: that of the thread's own pixels.
  UDAS_DEVICE void keep_in(float* line, int classes, int columns, const Map& map, const Tiling& tiling,
                           int first, const Source& column) {
    const int threads = tiling.tile_width, thread = threadIdx.x;
    const bool shares = map.width <= tiling.width;
    line_ = line;
    classes_ = classes;
    columns_ = columns;
    step_ = min(threads, columns);
    place_ = thread % step_;
    class_step_ = threads / step_;
    class_ = thread / step_ < class_step_ ? thread / step_ : classes;
    const int last = map.width - 1;
    low_ = shares ? min(first + place_, last) : column.low;
    next_ = shares ? min(first + place_ + step_, last) : column.high;
    left_ = line + (shares ? column.low - first : place_);
    right_ = shares ? 1 : step_;
    fraction_ = column.fraction;
  }

  UDAS_DEVICE void move(const Map& map, int64_t sample, const Row& row, const Source&, float = 1.0f) {
    __syncthreads();  // after the last use of the row above
    typed(map.data, map.type, [&](auto* data) {
      const int64_t* s = map.stride;
      const auto* at = data + sample * s[0] + row.low * s[2] + class_ * s[1];
      const int64_t below = (row.fraction > 0.0f ? row.high - row.low : 0) * s[2], step = class_step_ * s[1];
      for (int place = place_; place < columns_; place += step_) {
        const auto* from = at + (place == place_ ? low_ : next_) * s[3];
#pragma unroll 4
        for (int c = class_; c < classes_; c += class_step_, from += step)
          line_[c * columns_ + place] = blend(load(from), load(from + below), row.fraction);
      }
    });
    __syncthreads();
  }

  UDAS_DEVICE float operator[](int c) const {
    const float* left = left_ + c * columns_;
    return blend(left[0], left[right_], fraction_);
  }

 private:
  float *line_, *left_;
  int classes_, columns_;
  int place_, step_;        // of the columns that the thread fills: at most two, which are
  int low_, next_;          // these of the map
  int class_, class_step_;  // of its classes
  int right_;               // from the left one of the pixels' two columns to the right one
  float fraction_;
};

// Interpolates all logits of one pixel and keeps nothing for the next.
template <class Out>
UDAS_DEVICE void interpolate(const Map& map, int64_t sample, const Row& row, const Source& column,
                             int classes, Out& out) {
  typed(map.data, map.type, [&](auto* data) {
    Beside above(data, map, sample, row.low, column), below(data, map, sample, row.high, column);
    for (int c = 0; c < classes; ++c, above.next(map), below.next(map))
      out[c] = blend(above.at(column.fraction), below.at(column.fraction), row.fraction);
  });
}

// The most low-resolution columns that a tile's pixels read in one of `maps`: neighbours where the map is not
// wider than the image, else two for each pixel.
inline int most_columns(const Map* maps, int count, int width, const Tiling& tiling) {
  int64_t most = 0;
  for (const Map* map = maps; map < maps + count; ++map) {
    const int64_t neighbours = static_cast<int64_t>(width - 1) * map->width / tiling.width + 3;
    most = std::max(most, map->width <= tiling.width ? neighbours : 2 * static_cast<int64_t>(width));
  }
  return static_cast<int>(most);
}

// Bytes of the lines of Logits<0>.
__host__ UDAS_DEVICE size_t line_bytes(int maps, int classes, int columns) {
  return sizeof(float) * maps * classes * columns;
}

// Floats of a column of SharedRows.
constexpr __host__ UDAS_DEVICE int shared_pitch(int classes) { return (classes + 3) / 4 * 4; }

// Bytes of SharedRows.
__host__ UDAS_DEVICE size_t shared_rows_bytes(int maps, int classes, int columns) {
  return sizeof(float) * 3 * maps * shared_pitch(classes) * columns;
}

// Maps that are all needed at each pixel, for which there are no registers. The block reads the two
// low-resolution rows around a pixel row into shared memory, as far as its tile reaches, and interpolates
// them vertically there; a thread interpolates horizontally what it takes. The classes of a column are
// neighbours, and a thread moves four of them at a time.
template <int C>
class SharedRows {
 public:
  UDAS_DEVICE void keep_in(unsigned char* memory, int columns) {
    places_ = columns * kPitch;
    rows_ = reinterpret_cast<float*>(memory);
  }

  // Moves map `m` to pixel row `row`. Each thread fills places of its own, between two barriers.
  UDAS_DEVICE void move(int m, const Map& map, const Tiling& tiling, int64_t sample, const Row& row,
                        const Source* columns) const {
    float *line = line_of(m), *upper = line + places_, *step = upper + places_;
    if (row.fresh > 0) {
      const int first = first_column(columns, tiling);
      typed(map.data, map.type, [&](auto* data) {
        const int64_t *s = map.stride, below = (row.fraction > 0.0f ? row.high - row.low : 0) * s[2];
        const auto* at_row = data + sample * s[0] + row.low * s[2];
#pragma unroll 1
        for (int i = 4 * threadIdx.x; i < places_; i += 4 * tiling.tile_width) {
          const int j = i / kPitch, c = i - j * kPitch;
          const Source& pair = columns[j / 2];
          const int column = map.width <= tiling.width ? min(first + j, map.width - 1)
                             : j % 2 == 0              ? pair.low
                                                       : pair.high;
          const auto* at = at_row + c * s[1] + column * s[3];
#pragma unroll
          for (int k = 0; k < 4; ++k, at += s[1]) {
            if (c + k >= C) break;
            upper[i + k] = load(at);
            step[i + k] = load(at + below) - upper[i + k];
          }
        }
      });
    }
#pragma unroll 1
    for (int i = 4 * threadIdx.x; i < places_; i += 4 * tiling.tile_width) {
      const float4 from = four(upper + i), by = four(step + i);
      four(line + i) = {fmaf(row.fraction, by.x, from.x), fmaf(row.fraction, by.y, from.y),
                        fmaf(row.fraction, by.z, from.z), fmaf(row.fraction, by.w, from.w)};
    }
  }

  // The logits of this thread's pixel in map `m`. The column behind the last one of a map is as the last one.
  template <class Out>
  UDAS_DEVICE void read(int m, const Map& map, const Tiling& tiling, const Source* columns, Out& out) const {
    const Source& column = columns[threadIdx.x];
    const int place = map.width <= tiling.width ? column.low - first_column(columns, tiling)
                                                : 2 * static_cast<int>(threadIdx.x);
    float* from = line_of(m) + place * kPitch;
#pragma unroll
    for (int c = 0; c < C; c += 4) {
      const float4 left = four(from + c), right = four(from + c + kPitch);
      out[c] = blend(left.x, right.x, column.fraction);
      if (c + 1 < C) out[c + 1] = blend(left.y, right.y, column.fraction);
      if (c + 2 < C) out[c + 2] = blend(left.z, right.z, column.fraction);
      if (c + 3 < C) out[c + 3] = blend(left.w, right.w, column.fraction);
    }
  }

 private:
  static constexpr int kPitch = shared_pitch(C);

  UDAS_DEVICE static float4& four(float* at) { return *reinterpret_cast<float4*>(at); }

  // Of map `m`: its interpolated row, the upper one of the two rows, and the step from that to the lower one.
  UDAS_DEVICE float* line_of(int m) const { return rows_ + 3 * m * places_; }

  // Of a tile: its first pixel reads it, or, mirrored, its last one.
  UDAS_DEVICE static int first_column(const Source* columns, const Tiling& tiling) {
    return min(columns[0].low, columns[tiling.tile_width - 1].low);
  }

  int places_;
  float* rows_;
};

// ---- launches ----------------------------------------------------------------------------------------

template <class Task>
cudaError_t launch(void (*kernel)(Task), dim3 blocks, int threads, size_t shared, cudaStream_t stream,
                   const Task& task) {
  void* arguments[] = {const_cast<Task*>(&task)};
  return cudaLaunchKernel(kernel, blocks, dim3(threads), arguments, shared, stream);
}

inline int device_limit(cudaDeviceAttr limit) {
  int device = 0, value = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, limit, device);
  return value;
}

// Chooses the tiles that are worked off soonest: the widest of at most `widest` columns whose block fits into
// shared memory, of which it takes shared(height, width) bytes, as high as the rounds of blocks are fewest
// and best filled. The registers of a multiprocessor hold `resident` blocks of 128 threads, and a block costs
// as much as some rows beside its own.
template <class Shared>
void choose_tiles(Tiling& tiling, int widest, int resident, const Shared& shared) {
  constexpr int kFixedRows = 4, kLeastHeight = 8, kLeastWidth = 4;
  constexpr size_t kReserved = 1024;  // bytes of shared memory that the system takes of a block
  const size_t all = device_limit(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  const int64_t multiprocessors = device_limit(cudaDevAttrMultiProcessorCount);
  const auto cut = [&](int height, int width) {
    tiling.tile_height = height;
    tiling.tile_width = width;
    tiling.down = (tiling.height + height - 1) / height;
    tiling.across = (tiling.width + width - 1) / width;
  };
  for (int width = widest;; width /= 2) {
    int64_t least = std::numeric_limits<int64_t>::max();
    int best = 0;  // none fits
    for (int height = kTileHeight; height >= kLeastHeight; --height) {
      const size_t bytes = shared(height, width);
      if (bytes > kMostShared) continue;
      cut(height, width);
      const int64_t blocks = std::min<int64_t>(resident * (kTileWidth / width), all / (bytes + kReserved));
      const int64_t at_once = multiprocessors * std::max<int64_t>(blocks, 1);
      const int64_t cost = (tile_count(tiling) + at_once - 1) / at_once * (height + kFixedRows);
      if (cost >= least) continue;
      least = cost;
      best = height;
    }
    if (best > 0 || width == kLeastWidth) return cut(std::max(best, kLeastHeight), width);
  }
}

template <class Body, int... kUnrolled>
cudaError_t with_classes(int classes, const Body& body, std::integer_sequence<int, kUnrolled...>) {
  cudaError_t result = cudaSuccess;
  const bool found =
      ((classes == kUnrolled && (result = body(std::integral_constant<int, kUnrolled>{}), true)) || ...);
  return found ? result : body(std::integral_constant<int, 0>{});
}

// Calls body(constant C), C the class count if that is unrolled, else 0.
template <class Body>
cudaError_t with_classes(int classes, const Body& body) {
  return with_classes(classes, body, std::integer_sequence<int, UDAS_UNROLLED>{});
}

inline bool is_unrolled(int classes) {
  bool unrolled = false;
  for (const int known : {UDAS_UNROLLED}) unrolled = unrolled || classes == known;
  return unrolled;
}

// The widest tile: half as many threads where each needs much shared memory.
inline int widest_tile(int classes) { return is_unrolled(classes) ? kTileWidth : kTileWidth / 2; }

}  // namespace cuda
}  // namespace udas
