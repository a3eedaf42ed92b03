#pragma once
// Interpolation on the CPU. A low-resolution row is widened horizontally once and kept; the vertical step is
// then a contiguous multiply-add. Wide rows are laid out [tiles][C][64], so that a tile's classes lie
// together.
//
// This file and the *_kernel.h are compiled once per instruction set, each time in a namespace of its own.
#include "../core/math.h"
#include "task.h"

namespace udas {
inline namespace UDAS_ISA {

using cpu::Axis;
using cpu::kTile;
using cpu::Map;

constexpr int kLanes = UDAS_SIMD_WIDTH;
constexpr int kVectors = kTile / kLanes;  // vectors in a tile

// Floats aligned for the widest vectors. Zero at first.
class Floats {
 public:
  explicit Floats(int64_t count = 0) : memory_(count + 16) {}
  float* data() {
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory_.data());
    return reinterpret_cast<float*>((at + 63) / 64 * 64);
  }

 private:
  std::vector<float> memory_;
};

// The values of one lane group by class: u[c] in the functions of core/.
struct Column {
  float* at;
  Vec& operator[](int c) const { return *reinterpret_cast<Vec*>(at + int64_t{c} * kTile); }
};

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline VecInt load(const int32_t* p) { return *reinterpret_cast<const VecInt*>(p); }
inline void store(int32_t* p, VecInt v) { *reinterpret_cast<VecInt*>(p) = v; }
inline double sum(Vec v) {
  double total = 0.0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// row [C, w] -> wide [tiles][C][64]. Not inlined: its loop needs the registers.
__attribute__((noinline)) inline void widen(const float* row, int64_t classes, int64_t width,
                                            const Axis& axis, int64_t tiles, float* wide) {
  for (int64_t t = 0; t < tiles; ++t) {
    const int32_t* low = axis.low.data() + t * kTile;
    const int32_t* high = axis.high.data() + t * kTile;
    const float* fraction = axis.fraction.data() + t * kTile;
    for (int64_t c = 0; c < classes; ++c) {
      const float* values = row + c * width;
      float* to = wide + (t * classes + c) * kTile;
      for (int i = 0; i < kTile; ++i) {
        const float a = values[low[i]];
        to[i] = a + fraction[i] * (values[high[i]] - a);
      }
    }
  }
}

// The adjoint of widen: row[c, j] = the sum over the positions that read column j. `line` holds tiles · 64
// floats.
__attribute__((noinline)) inline void narrow(const float* wide, int64_t classes, int64_t width,
                                             const Axis& axis, int64_t tiles, float* line, float* row) {
  const float* fraction = axis.fraction.data();
  const int32_t* first = axis.first.data();
  for (int64_t c = 0; c < classes; ++c) {
    for (int64_t t = 0; t < tiles; ++t) {
      for (int i = 0; i < kTile; ++i) line[t * kTile + i] = wide[(t * classes + c) * kTile + i];
    }
    float carried = 0.0f;  // from the positions between columns j - 1 and j
    for (int64_t j = 0; j < width; ++j) {
      float low = 0.0f, high = 0.0f;
      for (int32_t x = first[j]; x < first[j + 1]; ++x) {
        const float right = fraction[x] * line[x];
        low += line[x] - right;
        high += right;
      }
      row[c * width + j] = carried + low;
      carried = high;
    }
  }
}

// The two low-resolution rows around the current full-resolution rows, widened, and the gradients collected
// for them. A row keeps its place while it is in use; when it is replaced, its gradient is written out.
class RowPair {
 public:
  RowPair(const Map& map, int64_t tiles, bool with_gradient)
      : map_(map),
        tiles_(tiles),
        wide_size_(tiles * map.classes * kTile),
        row_(map.classes * map.width),
        line_(tiles * kTile),
        wide_(2 * wide_size_),
        gradient_(with_gradient ? 2 * wide_size_ : 0),
        with_gradient_(with_gradient) {}

  // Begin a band of sample n; its gradient rows go to `rows`, [.., C, w] from low-resolution row `first` on.
  void begin(int64_t n, const Axis* columns, float* rows, int64_t first) {
    sample_ = n;
    columns_ = columns;
    rows_ = rows;
    first_ = first;
    held_[0] = held_[1] = -1;
  }

  void move(int64_t low, int64_t high) {
    int slot = held_[0] == low ? 0 : held_[1] == low ? 1 : -1;
    if (slot < 0) fill(slot = held_[0] == high ? 1 : 0, low);
    low_ = slot;
    high_ = slot;
    if (high == low) return;
    high_ = 1 - slot;
    if (held_[high_] != high) fill(high_, high);
  }

  void end() {
    flush(0);
    flush(1);
  }

  const float* low(int64_t tile) { return at(wide_, low_, tile); }
  const float* high(int64_t tile) { return at(wide_, high_, tile); }
  float* low_gradient(int64_t tile) { return at(gradient_, low_, tile); }
  float* high_gradient(int64_t tile) { return at(gradient_, high_, tile); }

 private:
  float* at(Floats& rows, int slot, int64_t tile) {
    return rows.data() + slot * wide_size_ + tile * map_.classes * kTile;
  }

  void fill(int slot, int64_t row) {
    flush(slot);
    held_[slot] = row;
    cpu::load_row(map_, sample_, row, row_.data());
    widen(row_.data(), map_.classes, map_.width, *columns_, tiles_, at(wide_, slot, 0));
    if (with_gradient_) std::memset(at(gradient_, slot, 0), 0, wide_size_ * sizeof(float));
  }

  void flush(int slot) {
    if (with_gradient_ && held_[slot] >= 0) {
      narrow(at(gradient_, slot, 0), map_.classes, map_.width, *columns_, tiles_, line_.data(),
             rows_ + (held_[slot] - first_) * map_.classes * map_.width);
    }
    held_[slot] = -1;
  }

  const Map& map_;
  int64_t tiles_, wide_size_;
  Floats row_, line_, wide_, gradient_;
  bool with_gradient_;
  int64_t sample_ = 0, first_ = 0;
  const Axis* columns_ = nullptr;
  float* rows_ = nullptr;
  int64_t held_[2] = {-1, -1};
  int low_ = 0, high_ = 0;
};

// The end of the run of full-resolution rows that begins at y and lies between the same low-resolution rows
// of every map.
inline int64_t run_end(const std::vector<Axis>& rows, int64_t y, int64_t end) {
  int64_t next = y + 1;
  for (; next < end; ++next) {
    for (const Axis& axis : rows) {
      if (axis.low[next] != axis.low[y] || axis.high[next] != axis.high[y]) return next;
    }
  }
  return end;
}

// Calls body(tile, begin, end) for every run of rows [begin, end) of a band and every tile. pairs[m] holds
// the low-resolution rows of map m around the run.
template <class Body>
inline void for_each_run(const cpu::Grid& grid, const std::vector<Axis>& rows, std::vector<RowPair>& pairs,
                         int64_t band, const Body& body) {
  const int64_t end = grid.end_y(band);
  for (int64_t y = grid.first_y(band); y < end;) {
    const int64_t next = run_end(rows, y, end);
    for (size_t m = 0; m < pairs.size(); ++m) pairs[m].move(rows[m].low[y], rows[m].high[y]);
    for (int64_t tile = 0; tile < grid.tiles; ++tile) body(tile, y, next);
    y = next;
  }
}

// to[C][64] = low + fraction · (high - low)
inline void blend(const float* low, const float* high, float fraction, int64_t classes, float* to) {
  for (int64_t i = 0; i < classes * kTile; i += kLanes) {
    const Vec a = load(low + i);
    store(to + i, a + fraction * (load(high + i) - a));
  }
}

// 64 values of a plane from column x on as float or int32; `missing` past the end.
template <class To, class From>
inline void copy_tile(const cpu::Plane& plane, int64_t n, int64_t y, int64_t x, int count, To missing,
                      To* to) {
  const From* from =
      static_cast<const From*>(plane.data) + n * plane.stride[0] + y * plane.stride[1] + x * plane.stride[2];
  if (plane.stride[2] == 1) {
    for (int i = 0; i < count; ++i) to[i] = static_cast<To>(from[i]);
  } else {
    for (int i = 0; i < count; ++i) to[i] = static_cast<To>(from[i * plane.stride[2]]);
  }
  for (int i = count; i < kTile; ++i) to[i] = missing;
}

// 64 pixels of every class of a full-resolution float32 map from column x on, [C][64]; 0 past the end.
inline void map_tile(const Map& map, int64_t n, int64_t y, int64_t x, int count, float* to) {
  cpu::Plane plane{map.data, map.type, {map.stride[0], map.stride[2], map.stride[3]}};
  for (int64_t c = 0; c < map.classes; ++c) {
    plane.data = static_cast<const float*>(map.data) + c * map.stride[1];
    copy_tile<float, float>(plane, n, y, x, count, 0.0f, to + c * kTile);
  }
}

// Labels as classes, -1 where ignored, past the end or out of range (then bad_label is set).
inline void label_tile(const cpu::Plane& target, int64_t n, int64_t y, int64_t x, int count,
                       int64_t ignore_index, int64_t classes, std::atomic<int64_t>& bad_label, int32_t* to) {
  int64_t wide[kTile];
  if (target.type == Type::uint8) {
    copy_tile<int64_t, uint8_t>(target, n, y, x, count, ignore_index, wide);
  } else {
    copy_tile<int64_t, int64_t>(target, n, y, x, count, ignore_index, wide);
  }
  int64_t bad = 0;
  for (int i = 0; i < kTile; ++i) {
    const bool inside = wide[i] >= 0 && wide[i] < classes;
    const bool counts = wide[i] != ignore_index;
    bad |= static_cast<int64_t>(counts && !inside);
    to[i] = counts && inside ? static_cast<int32_t>(wide[i]) : -1;
  }
  if (bad == 0) return;
  for (int i = 0; i < kTile; ++i) {
    if (wide[i] != ignore_index && (wide[i] < 0 || wide[i] >= classes)) bad_label.store(wide[i]);
  }
}

// to[i] += counts[i]. Integer sums: the order in which threads add does not matter.
inline void add_integers(const std::vector<int64_t>& counts, int64_t* to) {
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] != 0) __atomic_fetch_add(to + i, counts[i], __ATOMIC_RELAXED);
  }
}

}  // namespace UDAS_ISA
}  // namespace udas
