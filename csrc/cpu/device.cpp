// Registers the operators for the CPU.
#include "device.h"

STABLE_TORCH_LIBRARY_IMPL(udas_fast, CPU, m) { udas::front::register_operators<udas::cpu::Device>(m); }
