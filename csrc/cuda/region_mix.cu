// Region mixing: composite, normalise, cast and lay out two images and their labels in one pass. A block
// takes columns of one row, a thread all channels of its pixels; of the two images, only what is taken is
// read.
//
// There are two kernels. RGB bytes with labels of bytes, where rows and width allow it, are read four pixels
// a word, and what is taken is a word of bytes too; the result is written four values at a time. Anything
// else is read and written value by value, by whatever types and strides the task has.
//
// The floor, with P pixels of c channels: bytes P·c·(bytes in + bytes out) + P·(up to 2 read + 1
// written)·(label bytes) + P for a mask; one FMA a value. Bound by memory.
#include "common.cuh"

namespace udas {
namespace cuda {
namespace {

constexpr int kThreads = 64;
constexpr int kFour = 4;  // pixels of a thread of region_mix_rgb_kernel
constexpr int kRgb = 3;

// ---- stores ----------------------------------------------------------------------------------------

UDAS_DEVICE void narrow(float value, float& to) { to = value; }
UDAS_DEVICE void narrow(float value, __half& to) { to = __float2half_rn(value); }
UDAS_DEVICE void narrow(float value, uint8_t& to) { to = static_cast<uint8_t>(value); }
UDAS_DEVICE void narrow(float value, Brain& to) {  // to nearest, ties to even
  const uint32_t raw = __float_as_uint(value);
  to.raw = value != value ? 0x7fc0 : static_cast<uint16_t>((raw + 0x7fff + ((raw >> 16) & 1)) >> 16);
}

template <class T>
struct alignas(kFour * sizeof(T)) Four {
  T value[kFour];
};

template <class T>
UDAS_DEVICE void store_four(T* to, const Four<T>& four) {
  *reinterpret_cast<Four<T>*>(to) = four;
}

// ---- what the region takes -------------------------------------------------------------------------

// Neighbours in a row.
template <int kPixels>
struct Pixels {
  UDAS_DEVICE explicit Pixels(const MixTask& task)
      : x(static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * kPixels),
        n(blockIdx.x / static_cast<unsigned>(task.height)),
        y(static_cast<int>(blockIdx.x - n * task.height)),
        at(static_cast<int64_t>(blockIdx.x) * task.width + x) {}

  // Where the first one is in an image, in channel 0.
  UDAS_DEVICE int64_t in(const Map& map) const {
    return n * map.stride[0] + y * map.stride[2] + x * map.stride[3];
  }

  int x;
  unsigned n;  // the sample
  int y;
  int64_t at;                        // in [N, H, W]
  unsigned taken = 0, no_class = 0;  // a bit each
};

template <int kPixels>
UDAS_DEVICE void take_box(const int32_t* corners, Pixels<kPixels>& pixels) {
  const int32_t box[4] = {__ldg(corners), __ldg(corners + 1), __ldg(corners + 2), __ldg(corners + 3)};
#pragma unroll
  for (int i = 0; i < kPixels; ++i) pixels.taken |= (in_box(box, pixels.x + i, pixels.y) ? 1u : 0u) << i;
}

template <int kPixels>
UDAS_DEVICE void take_mask(const bool* mask, Pixels<kPixels>& pixels) {
#pragma unroll
  for (int i = 0; i < kPixels; ++i) pixels.taken |= (load_flag(mask, pixels.at + i) ? 1u : 0u) << i;
}

// `table`: the sample's.
template <int kPixels>
UDAS_DEVICE void take_classes(const bool* table, int64_t classes, const int64_t (&label)[kPixels],
                              Pixels<kPixels>& pixels) {
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    if (label[i] >= 0 && label[i] < classes) {
      pixels.taken |= (load_flag(table, label[i]) ? 1u : 0u) << i;
    } else {
      pixels.no_class |= (label[i] != 255 ? 1u : 0u) << i;
    }
  }
}

// `label`: those of the inside.
template <int kPixels>
UDAS_DEVICE void take(const MixTask& task, const int64_t (&label)[kPixels], Pixels<kPixels>& pixels) {
  const int64_t n = pixels.n;
  if (task.region == Region::box) {
    take_box(task.boxes + 4 * n, pixels);
  } else if (task.region == Region::mask) {
    take_mask(task.mask, pixels);
  } else {
    take_classes(task.table + n * task.table_classes, task.table_classes, label, pixels);
  }
}

// ---- RGB bytes -------------------------------------------------------------------------------------

// Four neighbouring bytes.
UDAS_DEVICE uint32_t load_word(const void* data, int64_t at) {
  return *reinterpret_cast<const uint32_t*>(static_cast<const uint8_t*>(data) + at);
}

UDAS_DEVICE uint8_t byte_of(uint32_t word, int i) { return static_cast<uint8_t>(word >> 8 * i); }

// 255 in the bytes whose bit is set.
UDAS_DEVICE uint32_t bytes_of(unsigned bits) { return ((bits * 0x00204081u) & 0x01010101u) * 255u; }

// The four pixels of each channel.
template <class Out>
using Mixed = Four<Out>[kRgb];

template <class Out>
UDAS_DEVICE void spoil_no_class(unsigned no_class, Mixed<Out>& mixed) {
#pragma unroll
  for (int i = 0; i < kRgb * kFour; ++i) {
    if ((no_class >> i / kRgb & 1) != 0) narrow(NAN, mixed[i % kRgb].value[i / kRgb]);
  }
}

// With the channels last, four pixels are twelve values in a row.
template <class Out>
UDAS_DEVICE void store_interleaved(const Mixed<Out>& mixed, Out* to) {
#pragma unroll
  for (int k = 0; k < kRgb; ++k) {
    Four<Out> four;
#pragma unroll
    for (int i = 0; i < kFour; ++i)
      four.value[i] = mixed[(kFour * k + i) % kRgb].value[(kFour * k + i) / kRgb];
    store_four(to + kFour * k, four);
  }
}

template <class Out>
UDAS_DEVICE void store_planes(const Mixed<Out>& mixed, Out* to, int64_t plane) {
#pragma unroll
  for (int c = 0; c < kRgb; ++c, to += plane) store_four(to, mixed[c]);
}

template <class Out>
__global__ void __launch_bounds__(kThreads) region_mix_rgb_kernel(UDAS_PARAMETER MixTask task) {
  Pixels<kFour> pixels(task);
  if (pixels.x >= task.width) return;
  const uint32_t inside_label = load_word(task.inside_label.data, pixels.at);
  const uint32_t outside_label = load_word(task.outside_label.data, pixels.at);
  int64_t label[kFour];
#pragma unroll
  for (int i = 0; i < kFour; ++i) label[i] = byte_of(inside_label, i);
  take(task, label, pixels);
  const uint32_t taken = bytes_of(pixels.taken);
  const auto either = [&](uint32_t inside, uint32_t outside) {
    return (inside & taken) | (outside & ~taken);
  };

  int64_t at_inside = pixels.in(task.inside), at_outside = pixels.in(task.outside);
  uint32_t inside[kRgb], outside[kRgb];
#pragma unroll
  for (int c = 0; c < kRgb; ++c) {
    inside[c] = taken != 0 ? load_word(task.inside.data, at_inside) : 0;
    outside[c] = ~taken != 0 ? load_word(task.outside.data, at_outside) : 0;
    at_inside += task.inside.stride[1];
    at_outside += task.outside.stride[1];
  }
  *reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(task.label) + pixels.at) =
      either(inside_label, outside_label);
  Mixed<Out> mixed;
#pragma unroll
  for (int c = 0; c < kRgb; ++c) {
    const Affine affine = task.affine[c];
    const uint32_t word = either(inside[c], outside[c]);
#pragma unroll
    for (int i = 0; i < kFour; ++i)
      narrow(fmaf(widen(byte_of(word, i)), affine.scale, affine.shift), mixed[c].value[i]);
  }
  if (!std::is_same_v<Out, uint8_t> && pixels.no_class != 0) spoil_no_class<Out>(pixels.no_class, mixed);

  Out* image = static_cast<Out*>(task.image);
  if (task.channels_last) {
    store_interleaved<Out>(mixed, image + kRgb * pixels.at);
  } else {
    const int64_t plane = static_cast<int64_t>(task.height) * task.width;
    store_planes<Out>(mixed, image + pixels.at + int64_t{kRgb - 1} * pixels.n * plane, plane);
  }
}

// Whether all of a task can be read four pixels a word.
bool is_rgb_bytes(const MixTask& task) {
  const auto in_words = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % kFour == 0; };
  const auto rows_in_words = [&](const Map& map) {
    const int64_t* s = map.stride;
    return in_words(map.data) && s[0] % kFour == 0 && s[1] % kFour == 0 && s[2] % kFour == 0 && s[3] == 1;
  };
  return task.inside.type == Type::uint8 && task.inside_label.type == Type::uint8 && task.channels == kRgb &&
         task.width % kFour == 0 && rows_in_words(task.inside) && rows_in_words(task.outside) &&
         in_words(task.inside_label.data) && in_words(task.outside_label.data);
}

// ---- anything else ---------------------------------------------------------------------------------

UDAS_DEVICE float load_value(const void* data, Type type, int64_t at) {
  if (type == Type::uint8) return widen(__ldg(static_cast<const uint8_t*>(data) + at));
  float value = 0.0f;
  typed(data, type, [&](auto* from) { value = load(from + at); });
  return value;
}

UDAS_DEVICE void store_value(void* data, Type type, int64_t at, float value) {
  if (type == Type::uint8) {
    narrow(value, static_cast<uint8_t*>(data)[at]);
  } else if (type == Type::float32) {
    narrow(value, static_cast<float*>(data)[at]);
  } else if (type == Type::float16) {
    narrow(value, static_cast<__half*>(data)[at]);
  } else {
    narrow(value, static_cast<Brain*>(data)[at]);
  }
}

__global__ void __launch_bounds__(kThreads) region_mix_kernel(UDAS_PARAMETER MixTask task) {
  Pixels<1> pixel(task);
  if (pixel.x >= task.width) return;
  const int64_t inside_label[1] = {load_label(task.inside_label, pixel.at)};
  take(task, inside_label, pixel);
  const bool taken = pixel.taken != 0;
  const int64_t label = taken ? inside_label[0] : load_label(task.outside_label, pixel.at);
  if (task.inside_label.type == Type::uint8) {
    static_cast<uint8_t*>(task.label)[pixel.at] = static_cast<uint8_t>(label);
  } else {
    static_cast<int64_t*>(task.label)[pixel.at] = label;
  }

  const Map& from = taken ? task.inside : task.outside;
  const int64_t plane = static_cast<int64_t>(task.height) * task.width;
  const int64_t step = from.stride[1], step_to = task.channels_last ? 1 : plane;
  int64_t at = pixel.in(from);
  int64_t to = task.channels_last ? pixel.at * task.channels
                                  : pixel.at + static_cast<int64_t>(task.channels - 1) * pixel.n * plane;
  const bool bad = pixel.no_class != 0 && task.out_type != Type::uint8;
#pragma unroll 1
  for (int c = 0; c < task.channels; ++c, at += step, to += step_to) {
    const Affine affine = task.affine[c];
    const float value = fmaf(load_value(from.data, from.type, at), affine.scale, affine.shift);
    store_value(task.image, task.out_type, to, bad ? NAN : value);
  }
}

}  // namespace

cudaError_t run_region_mix(const MixTask& task, cudaStream_t stream) {
  const int64_t rows = task.samples * task.height;
  if (rows == 0) return cudaSuccess;
  const auto run = [&](void (*kernel)(MixTask), int pixels) {
    const int threads = task.width / pixels;
    const dim3 blocks(static_cast<unsigned>(rows), (threads + kThreads - 1) / kThreads);
    return launch(kernel, blocks, kThreads, 0, stream, task);
  };
  if (!is_rgb_bytes(task)) return run(region_mix_kernel, 1);
  if (task.out_type == Type::uint8) return run(region_mix_rgb_kernel<uint8_t>, kFour);
  if (task.out_type == Type::float32) return run(region_mix_rgb_kernel<float>, kFour);
  if (task.out_type == Type::float16) return run(region_mix_rgb_kernel<__half>, kFour);
  return run(region_mix_rgb_kernel<Brain>, kFour);
}

}  // namespace cuda
}  // namespace udas
