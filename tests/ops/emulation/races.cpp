// The race detector of the emulation. The kernels are compiled with -fsanitize=thread, whose calls at every
// access end here instead of in its library. Reported are: two threads of a block that touch a byte of shared
// memory between two barriers, one of them writing; the same in global memory, where threads of two blocks
// are never ordered; shared memory beyond what the launch asked for; misaligned accesses; and threads that
// wait at different barriers. A read of global memory that a later thread overwrites is seen when the order
// is reversed.
#pragma GCC optimize("O2")
#include <cuda_runtime.h>

#include <unordered_map>
#include <utility>

namespace {

using emulated::place;

enum Kind : uint8_t { kRead, kWrite, kAtomic };

// The last access of each kind to a byte in a run: a block for shared memory, a launch for global memory.
struct Byte {
  unsigned run = 0, interval[3] = {}, block[3] = {};
  uint16_t thread[3] = {};
  bool seen[3] = {}, several = false;  // several: more than one thread has read it in this interval
};

constexpr long kShown = 5;
long found = 0, accesses = 0;
Byte shared_bytes[udas::cuda::kSharedBytes];
std::unordered_map<uintptr_t, Byte> global_bytes;

void report(const char* what, uintptr_t at) {
  if (++found <= kShown)
    std::fprintf(stderr, "%s at %#zx, block %u, thread %u\n", what, at, place.block, place.thread);
}

// Whether the last access of `kind` and the present one may happen in either order.
bool unordered(const Byte& byte, Kind kind) {
  if (!byte.seen[kind]) return false;
  if (byte.block[kind] != place.block) return true;
  const bool own = byte.thread[kind] == place.thread && !(kind == kRead && byte.several);
  return byte.interval[kind] == place.interval && !own;
}

bool races(Byte& byte, Kind kind, unsigned run) {
  if (byte.run != run) byte = Byte{run};
  const bool race = unordered(byte, kWrite) || (kind != kAtomic && unordered(byte, kAtomic)) ||
                    (kind != kRead && unordered(byte, kRead));
  if (kind == kRead) byte.several = unordered(byte, kRead);
  byte.seen[kind] = true;
  byte.block[kind] = place.block;
  byte.interval[kind] = place.interval;
  byte.thread[kind] = static_cast<uint16_t>(place.thread);
  return race;
}

bool races(uintptr_t at, Kind kind) {
  const auto known = global_bytes.find(at);
  if (kind == kRead && (known == global_bytes.end() || known->second.run != place.launches)) return false;
  return races(global_bytes[at], kind, place.launches);
}

void access(const void* pointer, size_t bytes, Kind kind) {
  const auto at = reinterpret_cast<uintptr_t>(pointer), stack = reinterpret_cast<uintptr_t>(place.stack);
  if (!place.in_thread || (at >= stack && at < stack + emulated::kStack)) return;
  ++accesses;
  if (at % bytes != 0) report("misaligned access", at);
  const auto shared = reinterpret_cast<uintptr_t>(udas::cuda::shared_bytes);
  const bool in_shared = at >= shared && at < shared + udas::cuda::kSharedBytes;
  if (in_shared && at + bytes > shared + place.shared) report("access beyond the block's shared memory", at);
  for (uintptr_t i = at; i < at + bytes; i += 4) {  // the first byte of each word stands for it
    const bool race = in_shared ? races(shared_bytes[i - shared], kind, place.blocks) : races(i, kind);
    if (race) return report(in_shared ? "race in shared memory" : "race in global memory", i);
  }
}

}  // namespace

namespace emulated {

void on_atomic(const void* at, size_t bytes) { access(at, bytes, kAtomic); }

void on_barrier(const void* caller) {
  if (place.barrier == nullptr) place.barrier = caller;
  if (place.barrier != caller) report("wait at another barrier", reinterpret_cast<uintptr_t>(caller));
}

}  // namespace emulated

#define UDAS_HOOKS(bytes)                                                   \
  void __tsan_read##bytes(void* at) { access(at, bytes, kRead); }           \
  void __tsan_write##bytes(void* at) { access(at, bytes, kWrite); }         \
  void __tsan_unaligned_read##bytes(void* at) { access(at, bytes, kRead); } \
  void __tsan_unaligned_write##bytes(void* at) { access(at, bytes, kWrite); }

extern "C" {
UDAS_HOOKS(1)
UDAS_HOOKS(2)
UDAS_HOOKS(4)
UDAS_HOOKS(8)
UDAS_HOOKS(16)
void __tsan_read_range(char* at, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) access(at + i, 1, kRead);
}
void __tsan_write_range(char* at, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) access(at + i, 1, kWrite);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// What has been found since the last call, and how many accesses were seen.
long emulated_races() { return std::exchange(found, 0); }
long emulated_accesses() { return std::exchange(accesses, 0); }
}
