// Facts about the build, for udas_fast.build_info(). No torch type crosses this boundary.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled operators of udas_fast; importing it registers them with torch.";
  m.def("build_info", [] {
    py::dict info;
    info["torch_built"] = UDAS_TORCH_BUILT;
    info["cuda"] = py::none();
    info["cuda_reason"] = UDAS_CUDA_REASON;
    info["archs"] = "";
#ifdef UDAS_WITH_CUDA
    info["cuda"] = UDAS_CUDA_VERSION;
    info["archs"] = UDAS_CUDA_ARCHS;
#endif
    info["simd"] = udas::isa_name();
    return info;
  });
}
