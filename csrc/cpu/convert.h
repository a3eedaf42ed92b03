#pragma once
// From torch's tensors to the plain types of task.h, and the loop over threads.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "../check.h"
#include "task.h"

namespace udas {
namespace cpu {

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

inline Map map_of(const Tensor& t) {
  Map map{t.const_data_ptr(), type_of(t), t.size(0), t.size(1), t.size(2), t.size(3), {}};
  for (int i = 0; i < 4; ++i) map.stride[i] = t.stride(i);
  return map;
}

inline Plane plane_of(const Tensor& t) {
  Plane plane;
  plane.data = t.const_data_ptr();
  plane.type = type_of(t);
  for (int i = 0; i < 3; ++i) plane.stride[i] = t.stride(i);
  return plane;
}

inline Plane plane_of(const std::optional<Tensor>& t) { return t ? plane_of(*t) : Plane{}; }

inline Tensor empty(const std::vector<int64_t>& size, ScalarType type) {
  return torch::stable::empty(size, type);
}

// body(begin, end) over [0, count) on torch's own threads.
template <class Body>
void parallel(int64_t count, int64_t grain, const Body& body) {
  if (count > 0) torch::stable::parallel_for(0, count, grain, body);
}

inline void check_bad_label(const char* name, const std::atomic<int64_t>& bad_label, int64_t classes,
                            int64_t ignored) {
  STD_TORCH_CHECK(bad_label == kNoLabel, name, ": found label ", bad_label.load(), ", expected 0 to ",
                  classes - 1, " or the ignored ", ignored);
}

}  // namespace cpu
}  // namespace udas
