// Region mixing: composite, normalise, cast and lay out two images and their labels in one pass.
//
// A thread takes four neighbours of a row, all channels: loads and stores of four elements where the strides
// allow it, three such stores for the twelve values of four RGB pixels in channels_last. Of the two images,
// only what is taken is read.
//
// The floor, with P pixels of c channels: bytes P·c·(bytes in + bytes out) + P·(up to 2 read + 1
// written)·(label bytes) + P for a mask; one FMA a value. Bound by memory.
#include "common.cuh"

namespace udas {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// ---- four elements at once -------------------------------------------------------------------------

template <class T>
struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) Four {
  T value[4];
};

template <class T>
UDAS_DEVICE bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Four<T>) == 0;
}

template <class T>
UDAS_DEVICE Four<T> load_four(const T* from, int64_t step, int count) {
  Four<T> four;
  if (count == 4 && step == 1 && aligned(from)) {
    four = *reinterpret_cast<const Four<T>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) four.value[i] = from[(i < count ? i : 0) * step];
  }
  return four;
}

template <class T>
UDAS_DEVICE void store_four(T* to, int64_t step, int count, const Four<T>& four) {
  if (count == 4 && step == 1 && aligned(to)) {
    *reinterpret_cast<Four<T>*>(to) = four;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) to[i * step] = four.value[i];
    }
  }
}

UDAS_DEVICE void narrow(float value, float& to) { to = value; }
UDAS_DEVICE void narrow(float value, __half& to) { to = __float2half_rn(value); }
UDAS_DEVICE void narrow(float value, uint8_t& to) { to = static_cast<uint8_t>(value); }
UDAS_DEVICE void narrow(float value, Brain& to) {  // to nearest, ties to even
  const uint32_t raw = __float_as_uint(value);
  to.raw = value != value ? 0x7fc0 : static_cast<uint16_t>((raw + 0x7fff + ((raw >> 16) & 1)) >> 16);
}

template <class Body>
UDAS_DEVICE void with_type(Type type, const Body& body) {
  if (type == Type::uint8) {
    body(uint8_t{});
  } else if (type == Type::float32) {
    body(float{});
  } else if (type == Type::float16) {
    body(__half{});
  } else {
    body(Brain{});
  }
}

// ---- one thread ------------------------------------------------------------------------------------

struct Quad {
  int64_t n, at;  // sample, and place in [N, H, W]
  int y, x, count;
  bool taken[4], bad[4];

  UDAS_DEVICE bool any(bool which) const {
    return taken[0] == which || taken[1] == which || taken[2] == which || taken[3] == which;
  }
};

template <class T>
UDAS_DEVICE Four<T> load_labels(const Labels& labels, const Quad& quad) {
  return load_four(static_cast<const T*>(labels.data) + quad.at, 1, quad.count);
}

// Which of the four pixels the region takes.
template <class T>
UDAS_DEVICE void choose(const MixTask& task, const Four<T>& label, Quad& quad) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    bool taken = false, bad = false;
    if (task.region == Region::box) {
      taken = in_box(task.boxes + 4 * quad.n, quad.x + i, quad.y);
    } else if (task.region == Region::mask) {
      taken = i < quad.count && load_flag(task.mask, quad.at + i);
    } else {
      const int64_t value = static_cast<int64_t>(label.value[i]);
      const bool known = value >= 0 && value < task.table_classes;
      taken = known && load_flag(task.table, quad.n * task.table_classes + value);
      bad = !known && value != 255;
    }
    quad.taken[i] = taken;
    quad.bad[i] = bad;
  }
}

template <class T>
UDAS_DEVICE void mix_labels(const MixTask& task, Quad& quad) {
  const Four<T> inside = load_labels<T>(task.inside_label, quad);
  const Four<T> outside = load_labels<T>(task.outside_label, quad);
  choose(task, inside, quad);
  Four<T> label;
#pragma unroll
  for (int i = 0; i < 4; ++i) label.value[i] = quad.taken[i] ? inside.value[i] : outside.value[i];
  store_four(static_cast<T*>(task.label) + quad.at, 1, quad.count, label);
}

// Channel `c` of the four pixels, mixed and normalised.
template <class T>
UDAS_DEVICE void mix_channel(const MixTask& task, const Quad& quad, int c, float (&out)[4]) {
  const auto load = [&](const Map& map) {
    const int64_t* s = map.stride;
    const T* from =
        static_cast<const T*>(map.data) + quad.n * s[0] + c * s[1] + quad.y * s[2] + quad.x * s[3];
    return load_four(from, s[3], quad.count);
  };
  Four<T> inside{}, outside{};
  if (quad.any(true)) inside = load(task.inside);
  if (quad.any(false)) outside = load(task.outside);
  const Affine affine = task.affine[c];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float value =
        fmaf(widen(quad.taken[i] ? inside.value[i] : outside.value[i]), affine.scale, affine.shift);
    out[i] = quad.bad[i] && task.out_type != Type::uint8 ? NAN : value;
  }
}

template <class T>
UDAS_DEVICE Four<T> narrow_four(float a, float b, float c, float d) {
  Four<T> four;
  narrow(a, four.value[0]);
  narrow(b, four.value[1]);
  narrow(c, four.value[2]);
  narrow(d, four.value[3]);
  return four;
}

// Four RGB pixels are twelve values in a row.
template <class In, class Out>
UDAS_DEVICE void mix_rgb(const MixTask& task, const Quad& quad, Out* image) {
  float r[4], g[4], b[4];
  mix_channel<In>(task, quad, 0, r);
  mix_channel<In>(task, quad, 1, g);
  mix_channel<In>(task, quad, 2, b);
  Out* to = image + quad.at * 3;
  store_four(to, 1, 4, narrow_four<Out>(r[0], g[0], b[0], r[1]));
  store_four(to + 4, 1, 4, narrow_four<Out>(g[1], b[1], r[2], g[2]));
  store_four(to + 8, 1, 4, narrow_four<Out>(b[2], r[3], g[3], b[3]));
}

template <class In, class Out>
UDAS_DEVICE void mix_image(const MixTask& task, const Quad& quad) {
  Out* image = static_cast<Out*>(task.image);
  const int64_t plane = static_cast<int64_t>(task.height) * task.width;
  if (task.channels_last && task.channels == 3 && quad.count == 4) return mix_rgb<In>(task, quad, image);
  for (int c = 0; c < task.channels; ++c) {
    float value[4];
    mix_channel<In>(task, quad, c, value);
    const Four<Out> four = narrow_four<Out>(value[0], value[1], value[2], value[3]);
    if (task.channels_last) {
      store_four(image + quad.at * task.channels + c, task.channels, quad.count, four);
    } else {
      Out* to = image + (quad.n * task.channels + c) * plane + (quad.at - quad.n * plane);
      store_four(to, 1, quad.count, four);
    }
  }
}

__global__ void __launch_bounds__(kThreads) region_mix_kernel(UDAS_PARAMETER MixTask task) {
  const int quads = (task.width + 3) / 4;
  const int64_t index = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (index >= task.samples * task.height * quads) return;
  const int64_t row = index / quads;
  Quad quad;
  quad.n = row / task.height;
  quad.y = static_cast<int>(row % task.height);
  quad.x = static_cast<int>(index % quads) * 4;
  quad.at = row * task.width + quad.x;
  quad.count = min(4, task.width - quad.x);
  if (task.inside_label.type == Type::uint8) {
    mix_labels<uint8_t>(task, quad);
  } else {
    mix_labels<int64_t>(task, quad);
  }
  with_type(task.inside.type, [&](auto in) {
    using In = decltype(in);
    with_type(task.out_type, [&](auto out) {
      using Out = decltype(out);
      if constexpr (!std::is_same_v<Out, uint8_t> || std::is_same_v<In, uint8_t>)
        mix_image<In, Out>(task, quad);
    });
  });
}

}  // namespace

cudaError_t run_region_mix(const MixTask& task, cudaStream_t stream) {
  const int64_t quads = task.samples * task.height * ((task.width + 3) / 4);
  if (quads == 0) return cudaSuccess;
  const dim3 blocks(static_cast<unsigned>((quads + kThreads - 1) / kThreads));
  return launch(region_mix_kernel, blocks, kThreads, 0, stream, task);
}

}  // namespace cuda
}  // namespace udas
