// Plans and launches of every kernel with shared memory that depends on its arguments, for every number of
// classes and of maps, without running any.
#include "../../../csrc/core/upsample.h"
#include "../../../csrc/cuda/task.h"

namespace {

using namespace udas;
using namespace udas::cuda;

constexpr int kSizes[][2] = {{3, 24}, {30, 240}, {161, 1281}, {40, 40}, {300, 70}};  // of the maps, the image

int refused = 0;

void count(cudaError_t error) { refused += error == cudaSuccess ? 0 : 1; }

template <class Task>
Task task_of(int classes, int maps, int in, int out) {
  Task task{};
  task.tiling.samples = 1;
  task.tiling.height = task.tiling.width = out;
  task.classes = classes;
  for (int m = 0; m < maps; ++m) task.maps[m] = {nullptr, {}, in, in, Type::float32};
  return task;
}

template <class Run>
void launch_loss(int classes, int gradients, int scratch, int teachers, const int (&size)[2],
                 const Run& run) {
  LossTask task = task_of<LossTask>(classes, gradients + teachers, size[0], size[1]);
  task.teachers = teachers;
  plan_loss(task, gradients, scratch);
  for (const bool with_grad : {false, true}) {
    task.with_grad = with_grad;
    count(run(task, nullptr));
  }
}

void launch_all(int classes, int maps, const int (&size)[2]) {
  launch_loss(classes, 1, 2, maps, size, run_loss<DistillationKl>);
  for (const bool mean : {false, true}) {
    PseudoLabelTask task = task_of<PseudoLabelTask>(classes, maps, size[0], size[1]);
    task.views = maps;
    task.mean = mean;
    plan_pseudo_label(task);
    count(run_pseudo_label(task, nullptr));
  }
  if (maps > 1) return;
  launch_loss(classes, 1, 1, 0, size, run_loss<CrossEntropy>);
  launch_loss(classes, 1, 2, 0, size, run_loss<SquaredError>);
  launch_loss(classes, 1, 1, 0, size, run_upsample_backward);
  launch_loss(classes, 2, 2, 0, size, run_loss<SymmetricKl>);
  UpsampleTask upsample{};
  ConfusionTask confusion{};
  upsample.classes = confusion.classes = classes;
  const LossTask like = task_of<LossTask>(classes, 1, size[0], size[1]);
  upsample.tiling = confusion.tiling = like.tiling;
  upsample.map = confusion.map = like.maps[0];
  plan_upsample(upsample);
  plan_confusion_matrix(confusion);
  count(run_upsample(upsample, nullptr));
  count(run_confusion_matrix(confusion, nullptr));
}

}  // namespace

// How many launches a GPU would refuse.
extern "C" int emulated_refused() {
  refused = 0;
  emulated::dry = true;
  for (int classes = 2; classes <= kMaxClasses; ++classes) {
    for (int maps = 1; maps <= kMaxViews; ++maps) {
      for (const auto& size : kSizes) launch_all(classes, maps, size);
    }
  }
  emulated::dry = false;
  return refused;
}
