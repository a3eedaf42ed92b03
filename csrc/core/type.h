#pragma once
// Element types and limits that the tasks of both devices share.
#include <cstdint>

namespace udas {

enum class Type : int32_t { none, float32, float16, bfloat16, uint8, int64, boolean };

constexpr int kMaxClasses = 256;
constexpr int kMaxViews = 16;                   // views of pseudo_label, teachers of distillation_kl
constexpr int64_t kMaxSide = int64_t{1} << 30;  // positions within an image are 32-bit, offsets 64-bit

}  // namespace udas
