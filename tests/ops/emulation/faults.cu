// A kernel with one of several faults, which the race detector must find; 0 is none.
#include <cuda_runtime.h>

namespace {

struct Task {
  int fault;
  int* out;
};

__attribute__((noinline)) int* words(int from) {
  return reinterpret_cast<int*>(udas::cuda::shared_bytes + from);
}

void kernel(Task task) {
  int* values = words(0);
  const int t = threadIdx.x;
  values[t] = t;
  if (task.fault != 1) __syncthreads();
  int sum = values[(t + 1) % 4];
  if (task.fault == 2) sum += values[4];
  if (task.fault == 3) sum += *words(3);
  if (task.fault == 4 && t == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  atomicAdd(task.out + 8, sum);
  task.out[task.fault == 5 ? t : blockIdx.x * 4 + t] = sum;
}

}  // namespace

extern "C" void emulated_fault(int fault, int* out) {
  Task task{fault, out};
  void* arguments[] = {&task};
  cudaLaunchKernel(kernel, dim3(2), dim3(4), arguments, 4 * sizeof(int), nullptr);
}
