#pragma once
// Small helpers around torch's stable tensors.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

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

// A new tensor on the device of `like`.
inline Tensor empty(const Tensor& like, const Sizes& size, ScalarType type) {
  return torch::stable::empty(size, type, std::nullopt, like.device());
}

// Copied only where it is not contiguous.
inline Optional contiguous(const Optional& t) {
  return t ? Optional(torch::stable::contiguous(*t)) : std::nullopt;
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
