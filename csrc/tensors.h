#pragma once
// Small helpers around torch's stable tensors.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "core/type.h"

namespace udas {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i > 0 ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != b.size(i)) return false;
  }
  return true;
}

inline Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half:
      return Type::float16;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    case ScalarType::Byte:
      return Type::uint8;
    case ScalarType::Long:
      return Type::int64;
    case ScalarType::Bool:
      return Type::boolean;
    default:
      return Type::float32;
  }
}

// A new tensor on the device of `like`, contiguous or, with four axes, channels_last. Through the C shim,
// since torch::stable::empty looks up its operator by name in every call.
inline Tensor empty(const Tensor& like, const Sizes& size, ScalarType type, bool channels_last = false) {
  const Sizes inwards = channels_last ? Sizes{1, 3, 2, 0} : Sizes{3, 2, 1, 0};
  Sizes stride(size.size());
  int64_t step = 1;
  for (const int64_t axis : inwards) {
    if (axis >= static_cast<int64_t>(size.size())) continue;
    stride[axis] = step;
    step *= std::max<int64_t>(size[axis], 1);
  }
  int32_t device;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(size.size(), size.data(), stride.data(),
                                                  static_cast<int32_t>(type), device, like.get_device_index(),
                                                  &made));
  return Tensor(made);
}

// Copied only where it is not contiguous.
inline Optional contiguous(const Optional& t) {
  return !t || t->is_contiguous() ? t : Optional(torch::stable::contiguous(*t));
}

template <class T>
const T* data_of(const Optional& t) {
  return t ? t->const_data_ptr<T>() : nullptr;
}

// 1 / log C of logits [N, C, h, w].
inline float inverse_log_classes(const Tensor& logits) {
  return static_cast<float>(1.0 / std::log(static_cast<double>(logits.size(1))));
}

}  // namespace udas
