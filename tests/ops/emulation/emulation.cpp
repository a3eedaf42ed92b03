// The parts of the emulated CUDA that exist once.
#include <cuda_runtime.h>

namespace udas {
namespace cuda {
alignas(16) unsigned char shared_bytes[kSharedBytes];
}  // namespace cuda
}  // namespace udas

extern "C" {
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
// The order of threads and blocks from now on.
void emulated_order(int order) { emulated::order = order; }
}
