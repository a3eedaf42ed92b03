#pragma once
// Shared by all kernels: loads that widen to float32, tiles, and the interpolation of a pixel's logits.
//
// One thread works on one full-resolution column of a tile and walks down its rows. The horizontal weights of
// a column are therefore computed once, and the two low-resolution rows it lies between are interpolated
// horizontally once per pair of rows (4 loads per class through L1, for 8 pixels at stride 8) and stay in
// registers: one FMA per pixel and class remains. Low-resolution maps of any dtype, strides and size take the
// same path; only the speed depends on the ratio of the sizes.
//
// For more classes than are unrolled (C = 0 below) nothing per class stays in registers: logits are
// interpolated anew at each use and gradients live in shared memory.
#include <cuda_fp16.h>

#include <type_traits>
#include <utility>

#include "../core/interpolate.h"
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

UDAS_DEVICE Source row_position(const Tiling& tiling, const Map& map, int y) {
  return position(y, map.height, tiling.height, tiling.align_corners);
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

// The four low-resolution values around a pixel, class after class.
template <class T>
class Corners {
 public:
  UDAS_DEVICE Corners(const T* data, const Map& map, int64_t sample, const Source& row, const Source& column)
      : top_left_(data + sample * map.stride[0] + row.low * map.stride[2] + column.low * map.stride[3]),
        top_right_(top_left_ + (column.high - column.low) * map.stride[3]),
        bottom_left_(top_left_ + (row.high - row.low) * map.stride[2]),
        bottom_right_(top_right_ + (row.high - row.low) * map.stride[2]) {}

  UDAS_DEVICE void next(const Map& map, int classes = 1) {
    const int64_t step = classes * map.stride[1];
    top_left_ += step;
    top_right_ += step;
    bottom_left_ += step;
    bottom_right_ += step;
  }

  UDAS_DEVICE float above(float across) const { return blend(load(top_left_), load(top_right_), across); }
  UDAS_DEVICE float below(float across) const {
    return blend(load(bottom_left_), load(bottom_right_), across);
  }

 private:
  const T *top_left_, *top_right_, *bottom_left_, *bottom_right_;
};

// The logits of a thread's pixels in one map, row after row. `Steps` holds the differences between the two
// low-resolution rows around a pixel: registers, or shared memory where those would not be enough.
template <int C, class Steps = Values<C>>
class Logits {
 public:
  UDAS_DEVICE void keep_in(Strided steps) { step_ = steps; }

  // Moves to a pixel. Memory is read only if `fresh`: the pixel above, if there is one, was between other
  // rows.
  UDAS_DEVICE void move(const Map& map, int64_t sample, const Source& row, const Source& column, bool fresh) {
    fraction_ = row.fraction;
    if (!fresh) return;
    typed(map.data, map.type, [&](auto* data) {
      Corners corners(data, map, sample, row, column);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const float above = corners.above(column.fraction);
        above_[c] = above;
        step_[c] = corners.below(column.fraction) - above;
        corners.next(map);
      }
    });
  }

  UDAS_DEVICE float operator[](int c) const { return fmaf(fraction_, step_[c], above_[c]); }

 private:
  float fraction_;
  Values<C> above_;
  Steps step_;
};

template <class Steps>
class Logits<0, Steps> {
 public:
  UDAS_DEVICE void move(const Map& map, int64_t sample, const Source& row, const Source& column, bool) {
    map_ = &map;
    sample_ = sample;
    row_ = row;
    column_ = column;
  }

  UDAS_DEVICE float operator[](int c) const {
    float value = 0.0f;
    typed(map_->data, map_->type, [&](auto* data) {
      Corners corners(data, *map_, sample_, row_, column_);
      corners.next(*map_, c);
      value = blend(corners.above(column_.fraction), corners.below(column_.fraction), row_.fraction);
    });
    return value;
  }

 private:
  const Map* map_;
  int64_t sample_;
  Source row_, column_;
};

// Interpolates all logits of one pixel and keeps nothing for the next.
template <int C, class Out>
UDAS_DEVICE void interpolate(const Map& map, int64_t sample, const Source& row, const Source& column,
                             int classes, Out& out) {
  const Classes<C> count{classes};
  typed(map.data, map.type, [&](auto* data) {
    Corners corners(data, map, sample, row, column);
#pragma unroll
    for (int c = 0; c < count; ++c) {
      out[c] = blend(corners.above(column.fraction), corners.below(column.fraction), row.fraction);
      corners.next(map);
    }
  });
}

// ---- launches ----------------------------------------------------------------------------------------

template <class Task>
cudaError_t launch(void (*kernel)(Task), dim3 blocks, int threads, size_t shared, cudaStream_t stream,
                   const Task& task) {
  void* arguments[] = {const_cast<Task*>(&task)};
  return cudaLaunchKernel(kernel, blocks, dim3(threads), arguments, shared, stream);
}

// Chooses the largest tile whose block fits into shared memory, of which it takes shared(height, width)
// bytes; only 16 rows high where 32 would leave a large GPU without work. The width of unrolled kernels is
// fixed.
template <class Shared>
void choose_tiles(Tiling& tiling, bool unrolled, const Shared& shared) {
  constexpr int64_t kEnough = 512;
  const auto cut = [&](int height, int width) {
    tiling.tile_height = height;
    tiling.tile_width = width;
    tiling.down = (tiling.height + height - 1) / height;
    tiling.across = (tiling.width + width - 1) / width;
  };
  for (int width = unrolled ? kTileWidth : kTileWidth / 2;; width /= 2) {
    cut(kTileHeight, width);
    if (tile_count(tiling) >= kEnough && shared(kTileHeight, width) <= kMostShared) return;
    cut(kTileHeight / 2, width);
    if (unrolled || width == 8 || shared(kTileHeight / 2, width) <= kMostShared) return;
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

}  // namespace cuda
}  // namespace udas
