#pragma once
// Mixing on the CPU, a row at a time. The arithmetic runs on contiguous values: rows with other strides are
// gathered first, and interleaved pixels are scattered last. A box cuts a row into three runs of one image
// each; other regions are a mask, by which two rows are blended.
#include "rows.h"

namespace udas {
inline namespace UDAS_ISA {

using cpu::MixTask;

template <class In, class Out>
inline Out finish(In value, Affine affine) {
  return static_cast<Out>(static_cast<float>(value) * affine.scale + affine.shift);
}

template <class In, class Out>
void convert_row(const In* __restrict from, int64_t count, Affine affine, Out* __restrict to) {
  if constexpr (std::is_same_v<In, uint8_t> && std::is_same_v<Out, uint8_t>) {
    std::memcpy(to, from, count);
  } else {
    for (int64_t x = 0; x < count; ++x) to[x] = finish<In, Out>(from[x], affine);
  }
}

// mask ? inside : outside. Both are read, so that there is no branch.
template <class T>
void select_row(const T* __restrict inside, const T* __restrict outside, const uint8_t* __restrict mask,
                int64_t count, T* __restrict to) {
  for (int64_t x = 0; x < count; ++x) {
    const T a = inside[x], b = outside[x];
    to[x] = mask[x] ? a : b;
  }
}

template <class In, class Out>
class MixLoop {
 public:
  explicit MixLoop(const MixTask& task)
      : task_(task),
        width_(task.width),
        mask_buffer_(width_),
        inside_(width_),
        outside_(width_),
        selected_(width_),
        label_in_(8 * width_),
        label_out_(8 * width_),
        planes_(task.channels * width_) {}

  void row(int64_t n, int64_t y) {
    fill_mask(n, y);
    if (task_.inside_label.type == Type::uint8) {
      mix_labels<uint8_t>(n, y);
    } else {
      mix_labels<int64_t>(n, y);
    }
    const int64_t* stride = task_.image_stride;
    Out* to = static_cast<Out*>(task_.image) + n * stride[0] + y * stride[2];
    const bool interleaved = stride[3] != 1;
    for (int64_t c = 0; c < task_.channels; ++c) {
      const In* inside = image_row(task_.inside, task_.inside_stride, n, c, y, inside_.data());
      const In* outside = image_row(task_.outside, task_.outside_stride, n, c, y, outside_.data());
      mix(inside, outside, task_.affine[c], interleaved ? planes_.data() + c * width_ : to + c * stride[1]);
    }
    if (interleaved) interleave(to);
  }

 private:
  template <class T>
  static const T* gather(const T* from, int64_t step, int64_t count, T* buffer) {
    if (step == 1) return from;
    for (int64_t x = 0; x < count; ++x) buffer[x] = from[x * step];
    return buffer;
  }

  const In* image_row(const void* data, const int64_t* stride, int64_t n, int64_t c, int64_t y,
                      In* buffer) const {
    const In* from = static_cast<const In*>(data) + n * stride[0] + c * stride[1] + y * stride[2];
    return gather(from, stride[3], width_, buffer);
  }

  template <class Label>
  const Label* label_row(const cpu::Plane& plane, int64_t n, int64_t y, std::vector<uint8_t>& buffer) const {
    const Label* from = static_cast<const Label*>(plane.data) + n * plane.stride[0] + y * plane.stride[1];
    return gather(from, plane.stride[2], width_, reinterpret_cast<Label*>(buffer.data()));
  }

  void mix(const In* inside, const In* outside, Affine affine, Out* to) {
    if (task_.region != Region::box) {  // in two passes: bytes are selected in longer vectors than floats
      select_row(inside, outside, mask_, width_, selected_.data());
      return convert_row(selected_.data(), width_, affine, to);
    }
    convert_row(outside, left_, affine, to);
    convert_row(inside + left_, right_ - left_, affine, to + left_);
    convert_row(outside + right_, width_ - right_, affine, to + right_);
  }

  template <class Label>
  void mix_labels(int64_t n, int64_t y) {
    const Label* inside = label_row<Label>(task_.inside_label, n, y, label_in_);
    const Label* outside = label_row<Label>(task_.outside_label, n, y, label_out_);
    Label* to = static_cast<Label*>(task_.label) + (n * task_.height + y) * width_;
    if (task_.region == Region::box) {
      std::memcpy(to, outside, width_ * sizeof(Label));
      std::memcpy(to + left_, inside + left_, (right_ - left_) * sizeof(Label));
      return;
    }
    select_row(inside, outside, mask_, width_, to);
  }

  void interleave(Out* __restrict to) const {
    const Out* __restrict from = planes_.data();
    if (task_.channels == 3) {
      for (int64_t x = 0; x < width_; ++x) {
        to[3 * x] = from[x];
        to[3 * x + 1] = from[width_ + x];
        to[3 * x + 2] = from[2 * width_ + x];
      }
      return;
    }
    for (int64_t c = 0; c < task_.channels; ++c) {
      for (int64_t x = 0; x < width_; ++x) to[x * task_.channels + c] = from[c * width_ + x];
    }
  }

  // What the table of sample n says of each label: 1 chosen, 0 not, 2 a label that is out of range, the last.
  void load_table(int64_t n) {
    if (n == table_of_) return;
    table_of_ = n;
    const bool* chosen = task_.table + n * task_.table_classes;
    table_.assign(std::max<int64_t>(task_.table_classes, 256) + 1, 2);
    table_[255] = 0;
    for (int64_t c = 0; c < task_.table_classes; ++c) table_[c] = chosen[c];
  }

  template <class Label>
  void fill_from_table(int64_t n, int64_t y) {
    load_table(n);
    const uint64_t last = table_.size() - 1;
    const Label* label = label_row<Label>(task_.inside_label, n, y, label_in_);
    uint8_t seen = 0;
    for (int64_t x = 0; x < width_; ++x) {
      const uint8_t found = table_[std::min(static_cast<uint64_t>(label[x]), last)];
      mask_buffer_[x] = found;
      seen |= found;
    }
    mask_ = mask_buffer_.data();
    if ((seen & 2) == 0) return;
    for (int64_t x = 0; x < width_; ++x) {
      if (mask_[x] == 2) task_.bad_label.store(static_cast<int64_t>(label[x]));
    }
  }

  // Sets the row's mask, or for a box its run [left, right).
  void fill_mask(int64_t n, int64_t y) {
    if (task_.region == Region::mask) {
      const uint8_t* from =
          static_cast<const uint8_t*>(task_.mask.data) + n * task_.mask.stride[0] + y * task_.mask.stride[1];
      mask_ = gather(from, task_.mask.stride[2], width_, mask_buffer_.data());
    } else if (task_.region == Region::classes) {
      task_.inside_label.type == Type::uint8 ? fill_from_table<uint8_t>(n, y)
                                             : fill_from_table<int64_t>(n, y);
    } else {
      const int32_t* box = task_.boxes + 4 * n;
      left_ = std::min<int64_t>(std::max<int64_t>(box[0], 0), width_);
      right_ = std::min<int64_t>(std::max<int64_t>(box[2], left_), width_);
      if (y < box[1] || y >= box[3]) right_ = left_;
    }
  }

  const MixTask& task_;
  int64_t width_, left_ = 0, right_ = 0;
  const uint8_t* mask_ = nullptr;  // of the row, where there is no box
  std::vector<uint8_t> mask_buffer_, table_;
  int64_t table_of_ = -1;  // the sample of table_
  std::vector<In> inside_, outside_, selected_;
  std::vector<uint8_t> label_in_, label_out_;
  std::vector<Out> planes_;
};

template <class In, class Out>
void mix_rows(const MixTask& task, int64_t begin, int64_t end) {
  MixLoop<In, Out> loop(task);
  for (int64_t row = begin; row < end; ++row) loop.row(row / task.height, row % task.height);
}

template <class In>
void mix_from(const MixTask& task, int64_t begin, int64_t end) {
  switch (task.out_type) {
    case Type::float16:
      return mix_rows<In, torch::headeronly::Half>(task, begin, end);
    case Type::bfloat16:
      return mix_rows<In, torch::headeronly::BFloat16>(task, begin, end);
    case Type::uint8:
      if constexpr (std::is_same_v<In, uint8_t>) return mix_rows<In, uint8_t>(task, begin, end);
      return;  // check_mixed_image: floating images do not become uint8
    default:
      return mix_rows<In, float>(task, begin, end);
  }
}

// Rows n · H + y.
inline void run_region_mix(const MixTask& task, int64_t begin, int64_t end) {
  switch (task.in_type) {
    case Type::uint8:
      return mix_from<uint8_t>(task, begin, end);
    case Type::float16:
      return mix_from<torch::headeronly::Half>(task, begin, end);
    case Type::bfloat16:
      return mix_from<torch::headeronly::BFloat16>(task, begin, end);
    default:
      return mix_from<float>(task, begin, end);
  }
}

}  // namespace UDAS_ISA
}  // namespace udas
