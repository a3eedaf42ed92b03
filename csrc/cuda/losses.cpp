// The loss operators on CUDA: check, describe the task, launch its tiles and then what adds them up.
#include <cmath>
#include <tuple>

#include "convert.h"

namespace udas {
namespace cuda {
namespace {

using Sizes = std::vector<int64_t>;
using Optional = std::optional<Tensor>;
using OneGradient = std::tuple<Tensor, Tensor, Tensor>;
using TwoGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Run = cudaError_t (*)(const LossTask&, cudaStream_t);

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
  // `maps`: `gradients` maps with a gradient, then the teachers.
  LossRun(const std::vector<Tensor>& maps, int gradients, const Common& common)
      : place_(maps[0]), maps_(maps), gradients_(gradients), common_(common) {
    check_pixel_weight(common.pixel_weight, maps[0], common.size[0], common.size[1]);
    pixel_weight_ = contiguous(common.pixel_weight);
    task.tiling = tiling_of(maps[0].size(0), common.size, common.align_corners);
    task.classes = static_cast<int32_t>(maps[0].size(1));
    task.teachers = static_cast<int32_t>(maps.size()) - gradients;
    for (size_t m = 0; m < maps.size(); ++m) task.maps[m] = map_of(maps[m]);
    task.pixel_weight = data_of<float>(pixel_weight_);
    task.with_grad = common.with_grad;
    plan_loss(task.tiling, task.classes, gradients, task.teachers);
  }

  // {loss, scale}, then the gradients.
  std::vector<Tensor> run(Run launch) {
    const Tensor& like = maps_[0];
    const bool map = common_.reduction == kNone;
    const int64_t tiles = tiles_of(task.tiling);
    Tensor loss = map ? empty(like, {like.size(0), common_.size[0], common_.size[1]}, ScalarType::Float)
                      : empty(like, {}, ScalarType::Float);
    Tensor scale = empty(like, {}, ScalarType::Float);
    Tensor sums = empty(like, {2, tiles}, ScalarType::Double);
    task.totals = sums.mutable_data_ptr<double>();
    task.counts = task.totals + tiles;
    if (map) task.loss_map = loss.mutable_data_ptr<float>();
    FinishTask finish = finish_of(loss, scale);
    std::vector<Tensor> results{loss, scale}, partial;
    for (int m = 0; m < gradients_; ++m) {
      results.push_back(empty(like, task.with_grad ? shape(m) : Sizes{0}, ScalarType::Float));
      if (!task.with_grad) continue;
      const Footprint room = footprint(task.tiling, task.maps[m]);
      partial.push_back(empty(like, {tiles, room.rows, task.classes, room.columns}, ScalarType::Float));
      task.footprint[m] = finish.footprint[m] = room;
      finish.partial[m] = task.partial[m] = partial.back().mutable_data_ptr<float>();
      finish.gradient[m] = results.back().mutable_data_ptr<float>();
      finish.height[m] = task.maps[m].height;
      finish.width[m] = task.maps[m].width;
    }
    check_launch(launch(task, place_.stream()));
    check_launch(run_finish(finish, place_.stream()));
    return results;
  }

  OneGradient one(Run launch) {
    const std::vector<Tensor> r = run(launch);
    return {r[0], r[1], r[2]};
  }

  TwoGradients two(Run launch) {
    const std::vector<Tensor> r = run(launch);
    return {r[0], r[1], r[2], r[3]};
  }

 private:
  Sizes shape(int m) const {
    const Tensor& t = maps_[m];
    return {t.size(0), t.size(1), t.size(2), t.size(3)};
  }

  FinishTask finish_of(Tensor& loss, Tensor& scale) const {
    FinishTask finish{};
    finish.tiling = task.tiling;
    finish.classes = task.classes;
    finish.maps = task.with_grad ? gradients_ : 0;
    finish.mean = common_.reduction == kMean;
    finish.totals = task.totals;
    finish.counts = task.counts;
    finish.loss = common_.reduction == kNone ? nullptr : loss.mutable_data_ptr<float>();
    finish.scale = scale.mutable_data_ptr<float>();
    return finish;
  }

  Place place_;
  std::vector<Tensor> maps_;
  int gradients_;
  Common common_;
  Optional pixel_weight_;

 public:
  LossTask task{};
};

OneGradient cross_entropy(const Tensor& logits, const Tensor& target, const Optional& weight,
                          const Optional& pixel_weight, int64_t ignore_index, bool align_corners,
                          int64_t reduction, bool with_grad) {
  check_logits("logits", logits);
  check_target(target, logits);
  check_class_values("weight", weight, logits);
  LossRun run({logits}, 1,
              {{target.size(1), target.size(2)}, pixel_weight, align_corners, reduction, with_grad});
  const Tensor labels = torch::stable::contiguous(target);
  const Optional weights = contiguous(weight);
  run.task.target = labels_of(labels);
  run.task.ignore_index = ignore_index;
  run.task.class_weight = data_of<float>(weights);
  return run.one(run_cross_entropy);
}

TwoGradients rectified_cross_entropy(const Tensor& primary, const Tensor& auxiliary, const Tensor& target,
                                     const Optional& pixel_weight, int64_t ignore_index, bool align_corners,
                                     int64_t reduction, bool with_grad) {
  check_logits("primary", primary);
  check_like("auxiliary", auxiliary, primary);
  check_target(target, primary);
  LossRun run({primary, auxiliary}, 2,
              {{target.size(1), target.size(2)}, pixel_weight, align_corners, reduction, with_grad});
  const Tensor labels = torch::stable::contiguous(target);
  run.task.target = labels_of(labels);
  run.task.ignore_index = ignore_index;
  return run.two(run_rectified);
}

TwoGradients symmetric_kl(const Tensor& a, const Tensor& b, Sizes size, const Optional& pixel_weight,
                          bool align_corners, int64_t reduction, bool with_grad) {
  check_logits("a", a);
  check_like("b", b, a);
  check_size(size);
  LossRun run({a, b}, 2, {size, pixel_weight, align_corners, reduction, with_grad});
  return run.two(run_symmetric_kl);
}

TwoGradients ensemble_kl(const Tensor& primary, const Tensor& auxiliary, Sizes size,
                         const Optional& pixel_weight, bool align_corners, int64_t reduction,
                         bool with_grad) {
  check_logits("primary", primary);
  check_like("auxiliary", auxiliary, primary);
  check_size(size);
  LossRun run({primary, auxiliary}, 2, {size, pixel_weight, align_corners, reduction, with_grad});
  return run.two(run_ensemble_kl);
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
  LossRun run(maps, 1, {size, pixel_weight, align_corners, reduction, with_grad});
  const Optional chosen = contiguous(mask);
  run.task.mask = data_of<bool>(chosen);
  run.task.inverse_temperature = static_cast<float>(1.0 / temperature);
  return run.one(run_distillation_kl);
}

OneGradient entropy(const Tensor& logits, Sizes size, const Optional& pixel_weight, bool align_corners,
                    int64_t reduction, bool with_grad) {
  check_logits("logits", logits);
  check_size(size);
  LossRun run({logits}, 1, {size, pixel_weight, align_corners, reduction, with_grad});
  run.task.inverse_log_classes = static_cast<float>(1.0 / std::log(static_cast<double>(logits.size(1))));
  return run.one(run_entropy);
}

// Not a loss, but what comes back through upsample is what a loss Σ gradient · activation(logits) would give.
Tensor upsample_backward(const Tensor& gradient, const Tensor& logits, int64_t activation,
                         bool align_corners) {
  check_logits("logits", logits);
  check_gradient(gradient, logits);
  const Optional unweighted;
  LossRun run({logits}, 1, {{gradient.size(2), gradient.size(3)}, unweighted, align_corners, kSum, true});
  run.task.incoming = map_of(gradient);
  run.task.activation = activation_of(activation);
  run.task.inverse_log_classes = static_cast<float>(1.0 / std::log(static_cast<double>(logits.size(1))));
  return run.run(run_upsample_backward)[2];
}

}  // namespace
}  // namespace cuda
}  // namespace udas

STABLE_TORCH_LIBRARY_IMPL(udas_fast, UDAS_CUDA_KEY, m) {
  m.impl("cross_entropy", TORCH_BOX(&udas::cuda::cross_entropy));
  m.impl("rectified_cross_entropy", TORCH_BOX(&udas::cuda::rectified_cross_entropy));
  m.impl("symmetric_kl", TORCH_BOX(&udas::cuda::symmetric_kl));
  m.impl("ensemble_kl", TORCH_BOX(&udas::cuda::ensemble_kl));
  m.impl("distillation_kl", TORCH_BOX(&udas::cuda::distillation_kl));
  m.impl("entropy", TORCH_BOX(&udas::cuda::entropy));
  m.impl("upsample_backward", TORCH_BOX(&udas::cuda::upsample_backward));
}
