#pragma once

namespace udas {

// The activation that upsample applies to a pixel's scores; the numbers are the schema's.
enum class Activation : int { none, softmax, self_information };

}  // namespace udas
