#pragma once
// Interpolation on the CPU. A low-resolution row is widened horizontally once and kept; the vertical step is
// then a contiguous multiply-add. Wide rows are laid out [tiles][C][kTile], so that a tile's classes lie
// together. A band is worked on in strips of so many tiles that the rows stay in the second cache.
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
constexpr int64_t kStripBytes = 1 << 19;  // of the wide rows of a strip: half of a second cache of 1 MiB

// Floats aligned for the widest vectors, not initialised.
class Floats {
 public:
  explicit Floats(int64_t count) : memory_(new float[count + 16]) {}
  float* data() {
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<float*>((at + 63) / 64 * 64);
  }

 private:
  std::unique_ptr<float[]> memory_;
};

// The values of one lane group by class: u[c] in the functions of core/.
struct Column {
  float* at;
  Vec& operator[](int c) const { return *reinterpret_cast<Vec*>(at + int64_t{c} * kTile); }
};

// Interpolated logits of one lane group, of which blend() knows the largest.
struct Logits : Column {
  Vec top;
};
template <class V>
inline V largest(const Logits& v, int) {
  return v.top;
}

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline VecInt load(const int32_t* p) { return *reinterpret_cast<const VecInt*>(p); }
inline void store(int32_t* p, VecInt v) { *reinterpret_cast<VecInt*>(p) = v; }
inline double sum(Vec v) {
  double total = 0.0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// Interpolated values of one lane group, computed where they are read.
struct Blended {
  const float *low, *high;
  float fraction;
  Vec operator[](int c) const {
    const Vec a = load(low + int64_t{c} * kTile);
    return a + fraction * (load(high + int64_t{c} * kTile) - a);
  }
};

// Lane index[i] of `from` in lane i.
inline Vec permuted(Vec from, VecInt index) {
#if UDAS_SIMD_WIDTH >= 8
  return __builtin_shuffle(from, index);  // one instruction
#else
  Vec to;
  for (int i = 0; i < kLanes; ++i) to[i] = from[index[i]];
  return to;
#endif
}

// Tiles [begin, end) of every row.
struct Strip {
  int64_t begin, end;
  int64_t tiles() const { return end - begin; }
};

// The low-resolution columns [begin, end) that a strip reads; a flipped axis runs backwards.
struct Columns {
  Columns(const Axis& axis, Strip strip) {
    const int64_t first = strip.begin * kTile, last = strip.end * kTile - 1;
    begin = std::min(axis.low[first], axis.low[last]);
    end = std::max(axis.high[first], axis.high[last]) + 1;
  }
  int64_t begin, end;
};

// row [C, w] -> wide [tiles][C][kTile]; the row is readable kLanes past its end. A vector that reads few
// columns takes them from one load. Not inlined: its loop needs the registers.
__attribute__((noinline)) inline void widen(const float* row, int64_t classes, int64_t width,
                                            const Axis& axis, Strip strip, float* wide) {
  for (int64_t x = strip.begin * kTile; x < strip.end * kTile; x += kLanes) {
    const int32_t *low = axis.low.data() + x, *high = axis.high.data() + x;
    const float* fraction = axis.fraction.data() + x;
    float* to = wide + (x / kTile - strip.begin) * classes * kTile + x % kTile;
    const int32_t first = std::min(low[0], low[kLanes - 1]);  // a flipped axis runs backwards
    const int32_t last = std::max(high[0], high[kLanes - 1]);
    if (last - first < kLanes) {
      VecInt at_low, at_high;
      Vec share;
      std::memcpy(&at_low, low, sizeof at_low);
      std::memcpy(&at_high, high, sizeof at_high);
      std::memcpy(&share, fraction, sizeof share);
      at_low -= first;
      at_high -= first;
      for (int64_t c = 0; c < classes; ++c) {
        Vec values;
        std::memcpy(&values, row + c * width + first, sizeof values);
        const Vec a = permuted(values, at_low), b = permuted(values, at_high);
        store(to + c * kTile, a + share * (b - a));
      }
    } else {
      for (int64_t c = 0; c < classes; ++c) {
        const float* values = row + c * width;
        for (int i = 0; i < kLanes; ++i) {
          const float a = values[low[i]];
          to[c * kTile + i] = a + fraction[i] * (values[high[i]] - a);
        }
      }
    }
  }
}

// The adjoint of widen: row[c, j] += the sum over the positions that read column j. kLanes classes are summed
// at a time, for which `line`, tiles · kTile · kLanes floats, holds them side by side.
__attribute__((noinline)) inline void narrow(const float* wide, int64_t classes, int64_t width,
                                             const Axis& axis, Strip strip, float* line, float* row) {
  const Columns columns(axis, strip);
  const int64_t begin = strip.begin * kTile, end = strip.end * kTile;
  const float* fraction = axis.fraction.data();
  const int32_t* first = axis.first.data();
  for (int64_t from = 0; from < classes; from += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, classes - from));
    for (int64_t t = 0; t < strip.tiles(); ++t) {
      for (int c = 0; c < count; ++c) {
        const float* values = wide + (t * classes + from + c) * kTile;
        for (int i = 0; i < kTile; ++i) line[(t * kTile + i) * kLanes + c] = values[i];
      }
    }
    Vec carried{};  // from the positions between columns j - 1 and j
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      Vec low{}, high{};
      const int64_t last = std::min<int64_t>(first[j + 1], end);
      for (int64_t x = std::max<int64_t>(first[j], begin); x < last; ++x) {
        const Vec value = load(line + (x - begin) * kLanes), right = fraction[x] * value;
        low += value - right;
        high += right;
      }
      const Vec sum = carried + low;
      for (int c = 0; c < count; ++c) row[(from + c) * width + j] += sum[c];
      carried = high;
    }
  }
}

// The two low-resolution rows around the current full-resolution rows, widened over a strip of at most
// `tiles` tiles, and the gradients collected for them. A row keeps its place while it is in use; when it is
// replaced, its gradient is written out.
class RowPair {
 public:
  RowPair(const Map& map, int64_t tiles, bool with_gradient)
      : map_(map),
        tiles_(tiles),
        wide_size_(tiles * map.classes * kTile),
        row_(map.classes * map.width + kLanes),
        line_(with_gradient ? tiles * kTile * kLanes : 0),
        wide_(2 * wide_size_),
        gradient_(with_gradient ? 2 * wide_size_ : 0),
        with_gradient_(with_gradient) {}

  // Begin a band of sample n; its gradient rows go to `rows`, [.., C, w] from low-resolution row `first` on.
  void begin(int64_t n, const Axis* columns, float* rows, int64_t first) {
    sample_ = n;
    columns_ = columns;
    rows_ = rows;
    first_ = first;
  }

  int64_t tiles() const { return tiles_; }

  void begin_strip(Strip strip) {
    strip_ = strip;
    held_[0] = held_[1] = -1;
  }

  void move(int64_t low, int64_t high) {
    new_[0] = new_[1] = false;
    int slot = held_[0] == low ? 0 : held_[1] == low ? 1 : -1;
    if (slot < 0) fill(slot = held_[0] == high ? 1 : 0, low);
    low_ = slot;
    high_ = slot;
    if (high == low) return;
    high_ = 1 - slot;
    if (held_[high_] != high) fill(high_, high);
  }

  void end_strip() {
    flush(0);
    flush(1);
  }

  // Clear the gradients of a tile that were not collected for before. Not in move(): here the first cache
  // keeps them.
  void clear_new(int64_t tile) {
    for (int slot = 0; slot < 2; ++slot) {
      if (new_[slot]) std::memset(at(gradient_, slot, tile), 0, map_.classes * kTile * sizeof(float));
    }
  }

  const float* low(int64_t tile) { return at(wide_, low_, tile); }
  const float* high(int64_t tile) { return at(wide_, high_, tile); }
  float* low_gradient(int64_t tile) { return at(gradient_, low_, tile); }
  float* high_gradient(int64_t tile) { return at(gradient_, high_, tile); }

 private:
  float* at(Floats& rows, int slot, int64_t tile) {
    return rows.data() + slot * wide_size_ + (tile - strip_.begin) * map_.classes * kTile;
  }

  void fill(int slot, int64_t row) {
    flush(slot);
    held_[slot] = row;
    new_[slot] = true;
    const Columns columns(*columns_, strip_);
    cpu::load_row(map_, sample_, row, columns.begin, columns.end, row_.data());
    widen(row_.data(), map_.classes, map_.width, *columns_, strip_, at(wide_, slot, strip_.begin));
  }

  void flush(int slot) {
    if (with_gradient_ && held_[slot] >= 0) {
      narrow(at(gradient_, slot, strip_.begin), map_.classes, map_.width, *columns_, strip_, line_.data(),
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
  Strip strip_{0, 0};
  int64_t held_[2] = {-1, -1};
  bool new_[2] = {false, false};  // held since the last move()
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

// Tiles of a strip where every class of a tile has `rows` wide rows.
inline int64_t strip_tiles(const cpu::Grid& grid, int64_t rows, int64_t classes) {
  const int64_t bytes = rows * classes * kTile * static_cast<int64_t>(sizeof(float));
  return std::min(std::max<int64_t>(kStripBytes / bytes, 1), grid.tiles);
}

// Calls body(strip, begin, end) for every run of rows [begin, end) of a band, strip by strip. pairs[m] holds
// the low-resolution rows of map m around the run.
template <class Body>
inline void for_each_strip(const cpu::Grid& grid, const std::vector<Axis>& rows, std::vector<RowPair>& pairs,
                           int64_t band, const Body& body) {
  const int64_t end = grid.end_y(band);
  for (Strip strip{0, 0}; strip.begin < grid.tiles; strip.begin = strip.end) {
    strip.end = std::min(strip.begin + pairs[0].tiles(), grid.tiles);
    for (RowPair& pair : pairs) pair.begin_strip(strip);
    for (int64_t y = grid.first_y(band); y < end;) {
      const int64_t next = run_end(rows, y, end);
      for (size_t m = 0; m < pairs.size(); ++m) pairs[m].move(rows[m].low[y], rows[m].high[y]);
      body(strip, y, next);
      y = next;
    }
    for (RowPair& pair : pairs) pair.end_strip();
  }
}

// The same, tile by tile: body(tile, begin, end).
template <class Body>
inline void for_each_run(const cpu::Grid& grid, const std::vector<Axis>& rows, std::vector<RowPair>& pairs,
                         int64_t band, const Body& body) {
  for_each_strip(grid, rows, pairs, band, [&](Strip strip, int64_t begin, int64_t end) {
    for (int64_t tile = strip.begin; tile < strip.end; ++tile) body(tile, begin, end);
  });
}

// to[C][kTile] = low + fraction · (high - low), and top[kTile] the largest of each pixel, two classes at a
// time: a maximum waits for the one before it.
inline void blend(const float* low, const float* high, float fraction, int64_t classes, float* to,
                  float* top) {
  const auto one = [&](int64_t i) {
    const Vec a = load(low + i), v = a + fraction * (load(high + i) - a);
    store(to + i, v);
    return v;
  };
  for (int lane = 0; lane < kTile; lane += kLanes) {
    Vec most = one(lane);
    int64_t c = 1;
    for (; c + 1 < classes; c += 2) {
      const Vec v = one(c * kTile + lane);
      most = larger(larger(one((c + 1) * kTile + lane), v), most);
    }
    if (c < classes) most = larger(one(c * kTile + lane), most);
    store(top + lane, most);
  }
}

// The adjoint of blend() for `rows` rows, the gradients of each `stride` floats after those of the one
// before. Several at once read and write the wide rows once.
template <int rows>
inline void add_rows(const float* gradient, int64_t stride, const float* fraction, int64_t count, float* low,
                     float* high) {
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec to_low = load(low + i), to_high = load(high + i);
    for (int k = 0; k < rows; ++k) {
      const Vec g = load(gradient + k * stride + i);
      to_low += (1.0f - fraction[k]) * g;
      to_high += fraction[k] * g;
    }
    store(high + i, to_high);
    store(low + i, to_low);  // after high: they are one at the last row, where fraction is 0
  }
}

// kTile values of a plane from column x on as float or int32; `missing` past the end.
template <class To, class From>
inline void copy_tile(const cpu::Plane& plane, int64_t n, int64_t y, int64_t x, int count, To missing,
                      To* to) {
  const From* from =
      static_cast<const From*>(plane.data) + n * plane.stride[0] + y * plane.stride[1] + x * plane.stride[2];
  if (plane.stride[2] == 1 && count == kTile) {  // a size that the compiler knows
    From values[kTile];
    std::memcpy(values, from, sizeof values);
    for (int i = 0; i < kTile; ++i) to[i] = static_cast<To>(values[i]);
    return;
  }
  for (int i = 0; i < count; ++i) to[i] = static_cast<To>(from[i * plane.stride[2]]);
  for (int i = count; i < kTile; ++i) to[i] = missing;
}

// Labels of type From as classes, -1 where ignored, past the end or out of range (then bad_label is set). Int
// holds them all, and -1. They are widened where they are compared: a vector that is loaded soon after its
// parts were stored waits for them.
template <class Int, class From>
inline void classes_of(const cpu::Plane& target, int64_t n, int64_t y, int64_t x, int count,
                       int64_t ignore_index, int64_t classes, std::atomic<int64_t>& bad_label, int32_t* to) {
  const Int ignored = static_cast<Int>(ignore_index), end = static_cast<Int>(classes);
  From labels[kTile];
  copy_tile<From, From>(target, n, y, x, count, cpu::kNoLabel, labels);
  int bad = 0;
  for (int i = 0; i < kTile; ++i) {
    const Int label = labels[i];
    const bool inside = (label >= 0) & (label < end), counts = label != ignored;
    bad |= counts & !inside;
    to[i] = counts & inside ? static_cast<int32_t>(label) : -1;
  }
  std::fill(to + count, to + kTile, -1);
  if (bad == 0) return;
  for (const Int label : labels) {
    if (label != ignored && (label < 0 || label >= end)) bad_label.store(label);
  }
}

inline void label_tile(const cpu::Plane& target, int64_t n, int64_t y, int64_t x, int count,
                       int64_t ignore_index, int64_t classes, std::atomic<int64_t>& bad_label, int32_t* to) {
  if (target.type == Type::uint8) {
    const int64_t byte = ignore_index >= 0 && ignore_index <= 255 ? ignore_index : -1;  // which no label is
    classes_of<int32_t, uint8_t>(target, n, y, x, count, byte, classes, bad_label, to);
  } else {
    classes_of<int64_t, int64_t>(target, n, y, x, count, ignore_index, classes, bad_label, to);
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
