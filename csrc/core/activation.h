#pragma once

namespace udas {

// What upsample makes of a pixel's scores; the numbers are the schema's.
enum class Activation : int { none, softmax, self_information };

}  // namespace udas
