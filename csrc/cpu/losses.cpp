// The loss operators on the CPU: check, describe the task, run the bands, add up in a fixed order.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

#include "convert.h"

namespace udas {
namespace cpu {
namespace {

using Sizes = std::vector<int64_t>;
using Optional = std::optional<Tensor>;
using OneGradient = std::tuple<Tensor, Tensor, Tensor>;
using TwoGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// The arguments that every loss has.
struct Common {
  Sizes size;
  const Optional& pixel_weight;
  bool align_corners;
  int64_t reduction;
  bool with_grad;
};

class LossRun {
 public:
  LossRun(Loss loss, const std::vector<Tensor>& maps, const Common& common)
      : common_(common), task(Grid(maps[0].size(0), common.size[0], common.size[1])) {
    check_pixel_weight(common.pixel_weight, maps[0], common.size[0], common.size[1]);
    task.loss = loss;
    task.with_grad = common.with_grad;
    task.pixel_weight = plane_of(common.pixel_weight);
    for (const Tensor& t : maps) {
      task.maps.push_back(map_of(t));
      task.rows.emplace_back(t.size(2), task.grid.height, common.align_corners, task.grid.height);
      task.columns.emplace_back(t.size(3), task.grid.width, common.align_corners, task.grid.tiles * kTile);
    }
  }

  // {loss, scale}, then the gradients of the first `gradients` maps.
  std::vector<Tensor> run(int gradients) {
    const Grid& grid = task.grid;
    const bool map = common_.reduction == kNone;
    Tensor loss = map ? empty({grid.samples, grid.height, grid.width}, ScalarType::Float)
                      : empty({}, ScalarType::Float);
    if (map) task.loss_map = loss.mutable_data_ptr<float>();
    task.totals.resize(grid.bands());
    task.counts.resize(grid.bands());
    for (int m = 0; m < gradients; ++m) task.gradients[m].resize(grid.bands());
    parallel(grid.bands(), 1, [&](int64_t begin, int64_t end) { kernels().losses(task, begin, end); });
    check_bad_label("target", task.bad_label, task.classes(), task.ignore_index);
    const double scale = scale_of_sum();
    if (!map) {
      double total = 0.0;
      for (const double value : task.totals) total += value;
      *loss.mutable_data_ptr<float>() = static_cast<float>(scale == 0.0 ? 0.0 : total * scale);
    }
    Tensor factor = empty({}, ScalarType::Float);
    *factor.mutable_data_ptr<float>() = static_cast<float>(scale);
    std::vector<Tensor> results{loss, factor};
    for (int m = 0; m < gradients; ++m) {
      results.push_back(task.with_grad ? gather_gradient(m) : empty({0}, ScalarType::Float));
    }
    return results;
  }

  OneGradient one() {
    const std::vector<Tensor> r = run(1);
    return {r[0], r[1], r[2]};
  }

  TwoGradients two() {
    const std::vector<Tensor> r = run(2);
    return {r[0], r[1], r[2], r[3]};
  }

 private:
  double scale_of_sum() const {
    if (common_.reduction != kMean) return 1.0;
    double count = 0.0;
    for (const double value : task.counts) count += value;
    return count > 0.0 ? 1.0 / count : 0.0;
  }

  // The bands' gradient rows of map `m`, added in the order of the bands.
  Tensor gather_gradient(int m) const {
    const Map& map = task.maps[m];
    Tensor out = empty({map.samples, map.classes, map.height, map.width}, ScalarType::Float);
    float* data = out.mutable_data_ptr<float>();
    parallel(map.samples * map.height, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) gather_row(m, i / map.height, i % map.height, data);
    });
    return out;
  }

  void gather_row(int m, int64_t n, int64_t y, float* data) const {
    const Map& map = task.maps[m];
    const int64_t plane = map.height * map.width;
    float* row = data + n * map.classes * plane + y * map.width;
    for (int64_t c = 0; c < map.classes; ++c) std::fill_n(row + c * plane, map.width, 0.0f);
    const int64_t bands = task.grid.bands_per_sample;
    for (int64_t band = n * bands; band < (n + 1) * bands; ++band) {
      const int64_t first = task.first_row(m, band);
      if (y < first || y > task.last_row(m, band)) continue;
      const float* from = task.gradients[m][band].get() + (y - first) * map.classes * map.width;
      for (int64_t c = 0; c < map.classes; ++c) {
        for (int64_t x = 0; x < map.width; ++x) row[c * plane + x] += *from++;
      }
    }
  }

  Common common_;

 public:
  LossTask task;
};

OneGradient cross_entropy(const Tensor& logits, const Tensor& target, const Optional& weight,
                          const Optional& pixel_weight, int64_t ignore_index, bool align_corners,
                          int64_t reduction, bool with_grad) {
  check_logits("logits", logits);
  check_target(target, logits);
  check_class_values("weight", weight, logits);
  const Tensor weights = weight ? torch::stable::contiguous(*weight) : Tensor();
  LossRun run(Loss::cross_entropy, {logits},
              {{target.size(1), target.size(2)}, pixel_weight, align_corners, reduction, with_grad});
  run.task.target = plane_of(target);
  run.task.ignore_index = ignore_index;
  if (weight) run.task.class_weight = weights.const_data_ptr<float>();
  return run.one();
}

TwoGradients rectified_cross_entropy(const Tensor& primary, const Tensor& auxiliary, const Tensor& target,
                                     const Optional& pixel_weight, int64_t ignore_index, bool align_corners,
                                     int64_t reduction, bool with_grad) {
  check_logits("primary", primary);
  check_like("auxiliary", auxiliary, primary);
  check_target(target, primary);
  LossRun run(Loss::rectified, {primary, auxiliary},
              {{target.size(1), target.size(2)}, pixel_weight, align_corners, reduction, with_grad});
  run.task.target = plane_of(target);
  run.task.ignore_index = ignore_index;
  return run.two();
}

TwoGradients symmetric_kl(const Tensor& a, const Tensor& b, Sizes size, const Optional& pixel_weight,
                          bool align_corners, int64_t reduction, bool with_grad) {
  check_logits("a", a);
  check_like("b", b, a);
  check_size(size);
  return LossRun(Loss::symmetric_kl, {a, b}, {size, pixel_weight, align_corners, reduction, with_grad}).two();
}

TwoGradients ensemble_kl(const Tensor& primary, const Tensor& auxiliary, Sizes size,
                         const Optional& pixel_weight, bool align_corners, int64_t reduction,
                         bool with_grad) {
  check_logits("primary", primary);
  check_like("auxiliary", auxiliary, primary);
  check_size(size);
  return LossRun(Loss::ensemble_kl, {primary, auxiliary},
                 {size, pixel_weight, align_corners, reduction, with_grad})
      .two();
}

OneGradient distillation_kl(const Tensor& student, std::vector<Tensor> teachers, Sizes size,
                            double temperature, const Optional& mask, const Optional& pixel_weight,
                            bool align_corners, int64_t reduction, bool with_grad) {
  check_logits("student", student);
  check_size(size);
  STD_TORCH_CHECK(!teachers.empty() && teachers.size() <= kMaxViews, "teachers: found ", teachers.size(),
                  ", expected 1 to ", kMaxViews);
  for (const Tensor& teacher : teachers) check_like("teachers", teacher, student);
  if (mask) check_plane("mask", *mask, student, size[0], size[1], {ScalarType::Bool});
  std::vector<Tensor> maps{student};
  maps.insert(maps.end(), teachers.begin(), teachers.end());
  LossRun run(Loss::distillation_kl, maps, {size, pixel_weight, align_corners, reduction, with_grad});
  run.task.mask = plane_of(mask);
  run.task.inverse_temperature = static_cast<float>(1.0 / temperature);
  return run.one();
}

OneGradient entropy(const Tensor& logits, Sizes size, const Optional& pixel_weight, bool align_corners,
                    int64_t reduction, bool with_grad) {
  check_logits("logits", logits);
  check_size(size);
  LossRun run(Loss::entropy, {logits}, {size, pixel_weight, align_corners, reduction, with_grad});
  run.task.inverse_log_classes = static_cast<float>(1.0 / std::log(static_cast<double>(logits.size(1))));
  return run.one();
}

// Not a loss, but what comes back through upsample is what a loss Σ gradient · activation(logits) would give.
Tensor upsample_backward(const Tensor& gradient, const Tensor& logits, int64_t activation,
                         bool align_corners) {
  check_logits("logits", logits);
  check_gradient(gradient, logits);
  const Optional unweighted;
  LossRun run(Loss::upsample_gradient, {logits},
              {{gradient.size(2), gradient.size(3)}, unweighted, align_corners, kSum, true});
  run.task.incoming = map_of(gradient);
  run.task.activation = activation_of(activation);
  run.task.inverse_log_classes = static_cast<float>(1.0 / std::log(static_cast<double>(logits.size(1))));
  return run.run(1)[2];
}

}  // namespace
}  // namespace cpu
}  // namespace udas

STABLE_TORCH_LIBRARY_IMPL(udas_fast, CPU, m) {
  m.impl("cross_entropy", TORCH_BOX(&udas::cpu::cross_entropy));
  m.impl("rectified_cross_entropy", TORCH_BOX(&udas::cpu::rectified_cross_entropy));
  m.impl("symmetric_kl", TORCH_BOX(&udas::cpu::symmetric_kl));
  m.impl("ensemble_kl", TORCH_BOX(&udas::cpu::ensemble_kl));
  m.impl("distillation_kl", TORCH_BOX(&udas::cpu::distillation_kl));
  m.impl("entropy", TORCH_BOX(&udas::cpu::entropy));
  m.impl("upsample_backward", TORCH_BOX(&udas::cpu::upsample_backward));
}
