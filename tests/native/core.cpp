// csrc/core for Python, one pixel at a time: what the CPU and the GPU kernels have in common, without torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <vector>

#include "../../csrc/core/interpolate.h"
#include "../../csrc/core/losses.h"
#include "../../csrc/core/predict.h"
#include "../../csrc/core/region.h"
#include "../../csrc/core/upsample.h"

namespace py = pybind11;
using namespace udas;
using Array = py::array_t<float, py::array::c_style | py::array::forcecast>;

namespace {

// The pixel that the structs of losses.h ask for; maps are the rows of logits, those with a gradient first.
struct Pixel {
  const Array& maps;
  int first_teacher, label;
  float weight, temperature;
  std::vector<std::vector<float>>& scratch;

  const float* logits(int m) const { return maps.data(m, 0); }
  std::vector<float>& gradient(int i) const { return scratch[i]; }
  const float* teacher(int k) const { return maps.data(first_teacher + k, 0); }
  int teachers() const { return static_cast<int>(maps.shape(0)) - first_teacher; }
  int classes() const { return static_cast<int>(maps.shape(1)); }
  float inverse_temperature() const { return 1.0f / temperature; }
  float inverse_log_classes() const { return 1.0f / std::log(static_cast<float>(classes())); }
};

// (loss, the same computed without a gradient, gradients [maps with a gradient, classes]); the gradients are
// those of weight · loss.
template <class Loss>
py::tuple loss(const Array& maps, int label, float weight, float temperature) {
  std::vector<std::vector<float>> scratch(Loss::kScratch, std::vector<float>(maps.shape(1)));
  const Pixel pixel{maps, Loss::kMaps, label, weight, temperature, scratch};
  const float with_gradient = Loss::template run<true, float>(pixel);
  Array gradients({static_cast<py::ssize_t>(Loss::kMaps), maps.shape(1)});
  for (int m = 0; m < Loss::kMaps; ++m)
    for (int c = 0; c < pixel.classes(); ++c) gradients.mutable_at(m, c) = scratch[m][c];
  return py::make_tuple(with_gradient, Loss::template run<false, float>(pixel), gradients);
}

template <class Loss>
void define(py::module_& m, const char* name) {
  m.def(name, &loss<Loss>, py::arg("maps"), py::arg("label") = 0, py::arg("weight") = 1.0f,
        py::arg("temperature") = 1.0f);
}

// (activation [classes], its gradient for the incoming one [classes])
py::tuple activated(const Array& logits, const Array& incoming, int activation) {
  const int classes = static_cast<int>(logits.shape(0));
  const float inverse = 1.0f / std::log(static_cast<float>(classes));
  Array out(classes), gradient(classes);
  float *to = out.mutable_data(), *grad = gradient.mutable_data();
  with_activation(static_cast<Activation>(activation), [&](auto kind) {
    activate<decltype(kind)::value, float>(logits.data(), inverse, classes, to);
    activation_gradient<decltype(kind)::value, float>(logits.data(), incoming.data(), inverse, classes, grad);
  });
  return py::make_tuple(out, gradient);
}

}  // namespace

PYBIND11_MODULE(udas_core, m) {
  define<CrossEntropy>(m, "cross_entropy");
  define<RectifiedCrossEntropy>(m, "rectified_cross_entropy");
  define<SymmetricKl>(m, "symmetric_kl");
  define<EnsembleKl>(m, "ensemble_kl");
  define<DistillationKl>(m, "distillation_kl");
  define<Entropy>(m, "entropy");
  m.def("activated", &activated);
  m.def("most_probable", [](const Array& logits, float temperature) {
    const auto best =
        most_probable<float>(logits.data(), 1.0f / temperature, static_cast<int>(logits.size()));
    return py::make_tuple(best.confidence, best.label);
  });
  m.def("confidence_bin", &confidence_bin);
  m.def("source", [](int64_t i, int64_t in, int64_t out, bool align_corners) {
    const Source s = source(i, in, out, align_corners);
    return py::make_tuple(s.low, s.high, s.fraction);
  });
  m.def("first_position", &first_position);
  m.def("in_box", [](std::array<int32_t, 4> box, int64_t x, int64_t y) { return in_box(box.data(), x, y); });
  m.def("affine", [](double unit, double mean, double std) {
    const Affine a = affine(unit, mean, std);
    return py::make_tuple(a.scale, a.shift);
  });
}
