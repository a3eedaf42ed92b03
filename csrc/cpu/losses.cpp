// Every loss on the CPU: describe the task, run the bands, add up in a fixed order.
#include "device.h"

namespace udas {
namespace cpu {
namespace {

class LossRun {
 public:
  explicit LossRun(const LossArguments& in)
      : in_(in), task_(Grid(in.like().size(0), in.size[0], in.size[1])) {
    task_.with_grad = in.options.with_grad;
    for (const Tensor& t : in.maps) {
      task_.maps.push_back(map_of(t));
      task_.rows.emplace_back(t.size(2), task_.grid.height, in.options.align_corners, task_.grid.height);
      task_.columns.emplace_back(t.size(3), task_.grid.width, in.options.align_corners,
                                 task_.grid.tiles * kTile);
    }
    task_.target = plane_of(in.target);
    task_.pixel_weight = plane_of(in.options.pixel_weight);
    task_.mask = plane_of(in.mask);
    task_.class_weight = data_of<float>(in.class_weight);
    task_.ignore_index = in.ignore_index;
    task_.inverse_temperature = static_cast<float>(1.0 / in.temperature);
    task_.inverse_log_classes = inverse_log_classes(in.like());
    if (in.incoming) task_.incoming = map_of(*in.incoming);
    task_.activation = in.activation;
  }

  void run(LossKernel kernel, LossResults& out) {
    const int64_t bands = task_.grid.bands();
    if (in_.per_pixel()) task_.loss_map = out.loss.mutable_data_ptr<float>();
    task_.totals.resize(bands);
    task_.counts.resize(bands);
    for (size_t m = 0; m < out.gradients.size(); ++m) task_.gradients[m].resize(bands);
    parallel(bands, 1, [&](int64_t begin, int64_t end) { kernel(task_, begin, end); });
    check_bad_label("target", task_.bad_label, task_.classes(), task_.ignore_index);
    const double scale = scale_of_sum();
    if (!in_.per_pixel()) {
      double total = 0.0;
      for (const double value : task_.totals) total += value;
      *out.loss.mutable_data_ptr<float>() = static_cast<float>(scale == 0.0 ? 0.0 : total * scale);
    }
    *out.scale.mutable_data_ptr<float>() = static_cast<float>(scale);
    for (size_t m = 0; m < out.gradients.size() && task_.with_grad; ++m) gather_gradient(m, out.gradients[m]);
  }

 private:
  double scale_of_sum() const {
    if (in_.options.reduction != kMean) return 1.0;
    double count = 0.0;
    for (const double value : task_.counts) count += value;
    return count == 0.0 ? 0.0 : 1.0 / count;  // a NaN counts
  }

  // The bands' gradient rows of map `m`, added in the order of the bands.
  void gather_gradient(int m, Tensor& out) const {
    const Map& map = task_.maps[m];
    float* data = out.mutable_data_ptr<float>();
    parallel(map.samples * map.height, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) gather_row(m, i / map.height, i % map.height, data);
    });
  }

  void gather_row(int m, int64_t n, int64_t y, float* data) const {
    const Map& map = task_.maps[m];
    const int64_t plane = map.height * map.width;
    float* row = data + n * map.classes * plane + y * map.width;
    for (int64_t c = 0; c < map.classes; ++c) std::fill_n(row + c * plane, map.width, 0.0f);
    const int64_t bands = task_.grid.bands_per_sample;
    for (int64_t band = n * bands; band < (n + 1) * bands; ++band) {
      const int64_t first = task_.first_row(m, band);
      if (y < first || y > task_.last_row(m, band)) continue;
      const float* from = task_.gradients[m][band].get() + (y - first) * map.classes * map.width;
      for (int64_t c = 0; c < map.classes; ++c) {
        for (int64_t x = 0; x < map.width; ++x) row[c * plane + x] += *from++;
      }
    }
  }

  const LossArguments& in_;
  LossTask task_;
};

}  // namespace

void Device::run(const LossArguments& in, LossResults& out, LossKernel kernel) {
  LossRun(in).run(kernel, out);
}

}  // namespace cpu
}  // namespace udas
