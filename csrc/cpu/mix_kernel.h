#pragma once
// Mixing, a row at a time: the row's mask once, then every channel and the label by it.
#include "rows.h"

namespace udas {
inline namespace UDAS_LEVEL {

using cpu::MixTask;

// to[x] = (mask[x] ? inside[x] : outside[x]) · scale + shift
template <class In>
void mix_row(const In* inside, int64_t inside_step, const In* outside, int64_t outside_step,
             const uint8_t* mask, int64_t width, Affine affine, float* to) {
  if (inside_step == 1 && outside_step == 1) {
    for (int64_t x = 0; x < width; ++x) {
      to[x] = static_cast<float>(mask[x] ? inside[x] : outside[x]) * affine.scale + affine.shift;
    }
    return;
  }
  for (int64_t x = 0; x < width; ++x) {
    const In value = mask[x] ? inside[x * inside_step] : outside[x * outside_step];
    to[x] = static_cast<float>(value) * affine.scale + affine.shift;
  }
}

template <class Out>
void write_row(const float* from, int64_t width, Out* to, int64_t step) {
  if (step == 1) {
    for (int64_t x = 0; x < width; ++x) to[x] = static_cast<Out>(from[x]);
  } else {
    for (int64_t x = 0; x < width; ++x) to[x * step] = static_cast<Out>(from[x]);
  }
}

class MixLoop {
 public:
  explicit MixLoop(const MixTask& task) : task_(task), mask_(task.width), values_(task.width) {}

  void row(int64_t n, int64_t y) {
    fill_mask(n, y);
    if (task_.inside_label.type == cpu::Type::uint8) {
      mix_labels<uint8_t>(n, y);
    } else {
      mix_labels<int64_t>(n, y);
    }
    for (int64_t c = 0; c < task_.channels; ++c) {
      switch (task_.in_type) {
        case cpu::Type::uint8:
          read<uint8_t>(n, c, y);
          break;
        case cpu::Type::float16:
          read<torch::headeronly::Half>(n, c, y);
          break;
        case cpu::Type::bfloat16:
          read<torch::headeronly::BFloat16>(n, c, y);
          break;
        default:
          read<float>(n, c, y);
      }
      switch (task_.out_type) {
        case cpu::Type::uint8:
          write<uint8_t>(n, c, y);
          break;
        case cpu::Type::float16:
          write<torch::headeronly::Half>(n, c, y);
          break;
        case cpu::Type::bfloat16:
          write<torch::headeronly::BFloat16>(n, c, y);
          break;
        default:
          write<float>(n, c, y);
      }
    }
  }

 private:
  template <class In>
  void read(int64_t n, int64_t c, int64_t y) {
    const int64_t* a = task_.inside_stride;
    const int64_t* b = task_.outside_stride;
    mix_row(static_cast<const In*>(task_.inside) + n * a[0] + c * a[1] + y * a[2], a[3],
            static_cast<const In*>(task_.outside) + n * b[0] + c * b[1] + y * b[2], b[3], mask_.data(),
            task_.width, task_.affine[c], values_.data());
  }

  template <class Out>
  void write(int64_t n, int64_t c, int64_t y) {
    const int64_t* s = task_.image_stride;
    write_row(values_.data(), task_.width, static_cast<Out*>(task_.image) + n * s[0] + c * s[1] + y * s[2],
              s[3]);
  }

  template <class Label>
  const Label* label_row(const cpu::Plane& plane, int64_t n, int64_t y) const {
    return static_cast<const Label*>(plane.data) + n * plane.stride[0] + y * plane.stride[1];
  }

  template <class Label>
  void mix_labels(int64_t n, int64_t y) {
    const Label* inside = label_row<Label>(task_.inside_label, n, y);
    const Label* outside = label_row<Label>(task_.outside_label, n, y);
    const int64_t a = task_.inside_label.stride[2], b = task_.outside_label.stride[2];
    Label* to = static_cast<Label*>(task_.label) + (n * task_.height + y) * task_.width;
    for (int64_t x = 0; x < task_.width; ++x) to[x] = mask_[x] ? inside[x * a] : outside[x * b];
  }

  template <class Label>
  void fill_from_table(int64_t n, int64_t y) {
    const bool* chosen = task_.table + n * task_.table_classes;
    const Label* label = label_row<Label>(task_.inside_label, n, y);
    for (int64_t x = 0; x < task_.width; ++x) {
      const int64_t value = static_cast<int64_t>(label[x * task_.inside_label.stride[2]]);
      const bool known = value >= 0 && value < task_.table_classes;
      if (!known && value != 255) task_.bad_label.store(value);
      mask_[x] = known && chosen[value];
    }
  }

  void fill_mask(int64_t n, int64_t y) {
    if (task_.region == Region::mask) {
      const bool* from = label_row<bool>(task_.mask, n, y);
      for (int64_t x = 0; x < task_.width; ++x) mask_[x] = from[x * task_.mask.stride[2]];
    } else if (task_.region == Region::classes) {
      task_.inside_label.type == cpu::Type::uint8 ? fill_from_table<uint8_t>(n, y)
                                                  : fill_from_table<int64_t>(n, y);
    } else {
      const int32_t* box = task_.boxes + 4 * n;
      for (int64_t x = 0; x < task_.width; ++x) mask_[x] = in_box(box, x, y);
    }
  }

  const MixTask& task_;
  std::vector<uint8_t> mask_;
  std::vector<float> values_;
};

// Rows n · H + y.
inline void run_mix(const MixTask& task, int64_t begin, int64_t end) {
  MixLoop loop(task);
  for (int64_t row = begin; row < end; ++row) loop.row(row / task.height, row % task.height);
}

}  // namespace UDAS_LEVEL
}  // namespace udas
