// Facts about the build, as an operator: no Python is linked, so that one file serves every interpreter.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/isa.h"

#ifdef UDAS_WITH_CUDA
#include <cuda_runtime_api.h>
#else
#define UDAS_CUDA_VERSION ""
#define UDAS_CUDA_ARCHS ""
#endif

namespace {

// The newest CUDA version that the driver runs, as 1000 · major + 10 · minor; 0 where there is no driver.
int driver_version() {
  int version = 0;
#ifdef UDAS_WITH_CUDA
  if (cudaDriverGetVersion(&version) != cudaSuccess) version = 0;
#endif
  return version;
}

// One value a line: CUDA toolkit, why there is none, its architectures, driver, instruction set of the CPU.
std::string build_info() {
  return std::string(UDAS_CUDA_VERSION "\n" UDAS_CUDA_REASON "\n" UDAS_CUDA_ARCHS "\n") +
         std::to_string(driver_version()) + "\n" + udas::isa_name();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(udas_fast, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
}
