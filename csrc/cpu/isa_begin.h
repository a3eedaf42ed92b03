#pragma once
// The headers from outside that the kernels use, included before a file changes the instruction set: what is
// declared here stays code for any processor.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstring>
#include <type_traits>

#include "../core/config.h"
#include "isa.h"
#include "task.h"
