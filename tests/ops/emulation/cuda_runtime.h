#pragma once
// Enough of CUDA to run the kernels of csrc/cuda, unchanged, on a CPU: an include path puts this file in the
// place of the toolkit's. A block's threads are fibers of one thread; __syncthreads switches to the next. The
// order in which threads and blocks take turns can be changed, so that a race changes results, and races.cpp
// sees every access. Shared memory starts as NaN in every block.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __shared__
#define __grid_constant__
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct dim3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};
inline uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w) {
  return {x, y, z, w};
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using std::max;
using std::min;
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class To, class From>
To emulated_bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(uint32_t raw) { return emulated_bits<float>(raw); }
inline uint32_t __float_as_uint(float value) { return emulated_bits<uint32_t>(value); }

namespace emulated {

// Where the run is, for races.cpp. An interval lasts from one barrier of a block to the next.
struct Place {
  bool in_thread = false;
  unsigned thread = 0, block = 0, interval = 0;
  unsigned launches = 0, blocks = 0;  // begun so far
  size_t shared = 0;                  // bytes that the launch asked for
  const char* stack = nullptr;        // of the thread
  const void* barrier = nullptr;      // the caller of this interval's barrier
};
inline Place place;

void on_atomic(const void* at, size_t bytes);
void on_barrier(const void* caller);

}  // namespace emulated

template <class T>
__attribute__((no_sanitize("thread"), noinline)) T atomicAdd(T* to, T value) {
  emulated::on_atomic(to, sizeof value);
  const T before = *to;
  *to += value;
  return before;
}
namespace udas {
namespace cuda {
constexpr size_t kSharedBytes = 48 * 1024;
extern unsigned char shared_bytes[];
}  // namespace cuda
}  // namespace udas

namespace emulated {

constexpr size_t kStack = 256 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool ended = false;
};

inline ucontext_t scheduler;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline unsigned current = 0;
inline std::function<void()> body;
inline int order = 0;     // 0: first to last, 1: last to first, others: a seed
inline bool dry = false;  // launches are checked but not run

__attribute__((no_sanitize("thread"))) inline void enter() {
  body();
  fibers[current]->ended = true;
  swapcontext(&fibers[current]->context, &scheduler);
}

inline void barrier() {
  const unsigned self = current;
  swapcontext(&fibers[self]->context, &scheduler);
}

inline std::vector<unsigned> turns(unsigned count, unsigned round) {
  std::vector<unsigned> turn(count);
  std::iota(turn.begin(), turn.end(), 0u);
  if (order == 1) std::reverse(turn.begin(), turn.end());
  if (order > 1) std::shuffle(turn.begin(), turn.end(), std::mt19937(order * 7919u + round));
  return turn;
}

// All threads of a block from barrier to barrier. All of them must reach each one.
__attribute__((no_sanitize("thread"))) inline void run_block(unsigned threads) {
  std::memset(udas::cuda::shared_bytes, 0xff, udas::cuda::kSharedBytes);
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = *fibers[t];
    fiber.ended = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  unsigned ended = 0;
  for (unsigned round = 0; ended == 0; ++round) {
    ++place.interval;
    place.barrier = nullptr;
    for (const unsigned t : turns(threads, round)) {
      current = t;
      threadIdx = dim3(t);
      place.thread = t;
      place.stack = fibers[t]->stack.get();
      place.in_thread = true;
      swapcontext(&scheduler, &fibers[t]->context);
      place.in_thread = false;
      ended += fibers[t]->ended ? 1 : 0;
    }
  }
  if (ended != threads) {
    std::fprintf(stderr, "%u of %u threads ended while the others wait at a barrier\n", ended, threads);
    std::abort();
  }
}

inline void run_grid(dim3 grid, unsigned threads) {
  gridDim = grid;
  blockDim = dim3(threads);
  const unsigned blocks = grid.x * grid.y * grid.z;
  ++place.launches;
  for (const unsigned b : turns(blocks, 0)) {
    blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
    place.block = b;
    ++place.blocks;
    run_block(threads);
  }
}

}  // namespace emulated

__attribute__((noinline)) inline void __syncthreads() {
  emulated::on_barrier(__builtin_return_address(0));
  emulated::barrier();
}

template <class Task>
cudaError_t cudaLaunchKernel(void (*kernel)(Task), dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t) {
  const bool possible = grid.x > 0 && grid.y > 0 && grid.y < 65536 && grid.z > 0 && grid.z < 65536 &&
                        block.x > 0 && block.x <= 1024 && shared <= udas::cuda::kSharedBytes &&
                        sizeof(Task) <= 4096;
  if (!possible) return cudaErrorInvalidConfiguration;
  if (emulated::dry) return cudaSuccess;
  emulated::place.shared = shared;
  const Task& task = *static_cast<const Task*>(arguments[0]);
  emulated::body = [kernel, &task] { kernel(task); };
  emulated::run_grid(grid, block.x);
  return cudaSuccess;
}

// A device so small that the images of the tests fill it several times.
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81 };
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr limit, int) {
  *value = limit == cudaDevAttrMultiProcessorCount ? 2 : 100 * 1024;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (!emulated::dry) std::memset(to, value, bytes);
  return cudaSuccess;
}
