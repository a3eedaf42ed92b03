// Every loss on CUDA: describe the task, launch its tiles and then the kernel that adds them up.
#include "device.h"

namespace udas {
namespace cuda {
namespace {

class LossRun {
 public:
  LossRun(const LossArguments& in, int gradients, int scratch)
      : in_(in),
        target_(contiguous(in.target)),
        pixel_weight_(contiguous(in.options.pixel_weight)),
        mask_(contiguous(in.mask)) {
    task_.tiling = tiling_of(in.like().size(0), in.size[0], in.size[1], in.options.align_corners);
    task_.classes = static_cast<int32_t>(in.like().size(1));
    task_.teachers = static_cast<int32_t>(in.maps.size()) - gradients;
    for (size_t m = 0; m < in.maps.size(); ++m) task_.maps[m] = map_of(in.maps[m]);
    if (target_) task_.target = labels_of(*target_);
    task_.pixel_weight = data_of<float>(pixel_weight_);
    task_.mask = data_of<bool>(mask_);
    task_.class_weight = data_of<float>(in.class_weight);
    if (in.incoming) task_.incoming = map_of(*in.incoming);
    task_.activation = in.activation;
    task_.ignore_index = in.ignore_index;
    task_.inverse_temperature = static_cast<float>(1.0 / in.temperature);
    task_.inverse_log_classes = inverse_log_classes(in.like());
    task_.with_grad = in.options.with_grad;
    plan_loss(task_, gradients, scratch);
  }

  void run(LossKernel kernel, cudaStream_t stream, LossResults& out) {
    const int64_t tiles = tiles_of(task_.tiling);
    Tensor sums = empty(in_.like(), {2, tiles}, ScalarType::Double);
    task_.totals = sums.mutable_data_ptr<double>();
    task_.counts = task_.totals + tiles;
    if (in_.per_pixel()) task_.loss_map = out.loss.mutable_data_ptr<float>();
    FinishTask finish = finish_of(out);
    std::vector<Tensor> partial;
    for (int m = 0; m < finish.maps; ++m) {
      const Footprint room = footprint(task_.tiling, task_.maps[m]);
      partial.push_back(
          empty(in_.like(), {tiles, room.rows, room.columns, task_.classes}, ScalarType::Float));
      task_.footprint[m] = finish.footprint[m] = room;
      finish.partial[m] = task_.partial[m] = partial.back().mutable_data_ptr<float>();
      finish.gradient[m] = out.gradients[m].mutable_data_ptr<float>();
      finish.height[m] = task_.maps[m].height;
      finish.width[m] = task_.maps[m].width;
    }
    check_launch(kernel(task_, stream));
    check_launch(run_finish(finish, stream));
  }

 private:
  FinishTask finish_of(LossResults& out) const {
    FinishTask finish{};
    finish.tiling = task_.tiling;
    finish.classes = task_.classes;
    finish.maps = task_.with_grad ? static_cast<int32_t>(out.gradients.size()) : 0;
    finish.mean = in_.options.reduction == kMean;
    finish.totals = task_.totals;
    finish.counts = task_.counts;
    finish.loss = in_.per_pixel() ? nullptr : out.loss.mutable_data_ptr<float>();
    finish.scale = out.scale.mutable_data_ptr<float>();
    return finish;
  }

  const LossArguments& in_;
  Optional target_, pixel_weight_, mask_;  // contiguous
  LossTask task_{};
};

}  // namespace

void Device::run(const LossArguments& in, LossResults& out, LossKernel kernel, int scratch) const {
  LossRun(in, static_cast<int>(out.gradients.size()), scratch).run(kernel, guard_.stream(), out);
}

}  // namespace cuda
}  // namespace udas
