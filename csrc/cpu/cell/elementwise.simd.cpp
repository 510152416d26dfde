// Norms, mixing and sums: one pass over memory each, a row of pixels after the other.
//
// Sums over pixels are taken in single precision over short runs only and added in double.
#include "lanes.h"

namespace da2s_fast::DA2S_ISA {
namespace {

// How far before their use candidates are asked for, in bytes: several at a time come from memory,
// and processors stop reading ahead where a page of 4096 bytes ends.
constexpr int64_t kAhead = 3072;

// Calls run(lane, first, count) for every vector of lanes and every run of pixels.
template <class T, class Run>
DA2S_INLINE void for_runs(int64_t pixels, int64_t lanes, Run run) {
  for (int64_t first = 0; first < pixels; first += kRun) {
    const int64_t count = pixels - first < kRun ? pixels - first : kRun;
    for (int64_t lane = 0; lane < lanes; lane += kLanes<T>) run(lane, first, count);
  }
}

// The same with rows that need not follow each other: run(lane, y, first, count).
template <class T, class Run>
DA2S_INLINE void for_grid_runs(Size size, int64_t lanes, Run run) {
  for (int64_t y = 0; y < size.height; ++y)
    for_runs<T>(size.width, lanes,
                [&](int64_t lane, int64_t first, int64_t count) { run(lane, y, first, count); });
}

// Calls run(y, lane) for every row and every vector of lanes.
template <class T, class Run>
DA2S_INLINE void for_rows(int64_t height, int64_t lanes, Run run) {
  for (int64_t y = 0; y < height; ++y)
    for (int64_t lane = 0; lane < lanes; lane += kLanes<T>) run(y, lane);
}

// Reads a number of a tensor that comes from memory.
template <class T>
DA2S_INLINE Vector<T> read_streaming(const T* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead);
  return read(p);
}

// Calls run(part, how many) for up to four parts at a time: what they have in common is read once
// for them, and their memory streams in side by side.
template <class Run>
DA2S_INLINE void in_parts(int64_t count, Run run) {
  int64_t part = 0;
  for (; part + 4 <= count; part += 4) run(part, Constant<4>{});
  switch (count - part) {
    case 3:
      return run(part, Constant<3>{});
    case 2:
      return run(part, Constant<2>{});
    case 1:
      return run(part, Constant<1>{});
  }
}

// Adds to out if it is not the first to write there.
template <int Count, class T>
DA2S_INLINE void weigh_together(Grid<const T> x, const Weighed<T>* parts, bool first, Size size,
                                int64_t lanes, Grid<T> out) {
  for_grid_runs<T>(size, lanes, [=](int64_t lane, int64_t y, int64_t begin, int64_t pixels) {
    Vector<T> sum[Count] = {};
    for (int64_t i = begin; i < begin + pixels; ++i) {
      const Vector<T> value = read(x.at(y, i).data + lane);
      T* to = out.at(y, i).data + lane;
      Vector<T> total = first ? Vector<T>{} : read(to);
      for (int j = 0; j < Count; ++j) {
        const Vector<T> g = read(parts[j].g.at(y, i).data + lane);
        sum[j] += g * value;
        total += splat(parts[j].factor) * g;
      }
      write(to, total);
    }
    for (int j = 0; j < Count; ++j) add_to<T>(parts[j].products + lane, sum[j]);
  });
}

// Numbers per lane, zeros where there are none.
template <class T>
DA2S_INLINE Vector<T> of_lane(const T* numbers, int64_t lane) {
  return numbers ? read(numbers + lane) : Vector<T>{};
}

template <int Count, class T>
DA2S_INLINE void mix_together(const Mixed<T>* parts, bool add, Size size, int64_t lanes,
                              Grid<T> out) {
  for_grid_runs<T>(size, lanes, [=](int64_t lane, int64_t y, int64_t begin, int64_t pixels) {
    Vector<T> factor[Count], center[Count];
    const T* from[Count];
    for (int j = 0; j < Count; ++j) {
      factor[j] = read(parts[j].scale + lane);
      center[j] = of_lane(parts[j].mean, lane);
      from[j] = parts[j].z.at(y, begin).data + lane;
    }
    T* to = out.at(y, begin).data + lane;
    for (int64_t i = 0; i < pixels; ++i, to += out.pixel) {
      Vector<T> total = add ? read(to) : Vector<T>{};
      for (int j = 0; j < Count; ++j) {
        total += factor[j] * (read_streaming(from[j]) - center[j]);
        from[j] += parts[j].z.pixel;
      }
      write(to, total);
    }
  });
}

template <int Count, class T>
DA2S_INLINE void multiply_together(Grid<const T> g, const Factor<T>* factors, Size size,
                                   int64_t lanes) {
  for_grid_runs<T>(size, lanes, [=](int64_t lane, int64_t y, int64_t begin, int64_t pixels) {
    // Two sums each: shorter ones round less, and no addition waits for the one before.
    Vector<T> sum[Count][2] = {}, center[Count];
    const T* from[Count];
    for (int j = 0; j < Count; ++j) {
      center[j] = of_lane(factors[j].mean, lane);
      from[j] = factors[j].z.at(y, begin).data + lane;
    }
    const T* left = g.at(y, begin).data + lane;
    const auto add_pixel = [&](int which) {
      const Vector<T> value = read(left);
      left += g.pixel;
      for (int j = 0; j < Count; ++j) {
        sum[j][which] += value * (read_streaming(from[j]) - center[j]);
        from[j] += factors[j].z.pixel;
      }
    };
    int64_t i = 0;
    for (; i + 2 <= pixels; i += 2) {
      add_pixel(0);
      add_pixel(1);
    }
    if (i < pixels) add_pixel(0);
    for (int j = 0; j < Count; ++j) add_to<T>(factors[j].products + lane, sum[j][0] + sum[j][1]);
  });
}

}  // namespace

int64_t vector_bytes() { return kVectorBytes; }

template <class T>
void moments(const T* z, int64_t pixels, int64_t lanes, const T* pivot, double* sums,
             double* squares) {
  for_runs<T>(pixels, lanes, [=](int64_t lane, int64_t first, int64_t count) {
    Vector<T> sum[2] = {}, square[2] = {};
    const Vector<T> center = read(pivot + lane);
    const T* at = z + first * lanes + lane;
    int64_t i = 0;
    for (; i + 2 <= count; i += 2)
      for (int j = 0; j < 2; ++j) {
        const Vector<T> value = read(at + (i + j) * lanes) - center;
        sum[j] += value;
        square[j] += value * value;
      }
    if (i < count) {
      const Vector<T> value = read(at + i * lanes) - center;
      sum[0] += value;
      square[0] += value * value;
    }
    add_to<T>(sums + lane, sum[0] + sum[1]);
    add_to<T>(squares + lane, square[0] + square[1]);
  });
}

template <class T>
void lane_sums(Grid<const T> g, int64_t pixels, int64_t lanes, double* sums) {
  for_runs<T>(pixels, lanes, [=](int64_t lane, int64_t first, int64_t count) {
    Vector<T> sum = {};
    for (int64_t i = first; i < first + count; ++i) sum += read(g.data + i * g.pixel + lane);
    add_to<T>(sums + lane, sum);
  });
}

template <class T>
void lane_products(Grid<const T> g, const Factor<T>* factors, int64_t count, Size size,
                   int64_t lanes) {
  in_parts(count, [&](int64_t part, auto together) {
    multiply_together<together>(g, factors + part, size, lanes);
  });
}

template <class T>
void weighed_gradient(Grid<const T> x, const Weighed<T>* parts, int64_t count, Size size,
                      int64_t lanes, Grid<T> out) {
  in_parts(count, [&](int64_t part, auto together) {
    weigh_together<together>(x, parts + part, part == 0, size, lanes, out);
  });
}

template <class T>
void mix(const Mixed<T>* parts, int64_t count, Size size, int64_t lanes, bool add, Grid<T> out) {
  in_parts(count, [&](int64_t part, auto together) {
    mix_together<together>(parts + part, add || part > 0, size, lanes, out);
  });
}

template <class T>
void norm_gradient(Grid<const T> g, const T* z, int64_t pixels, int64_t lanes,
                   const NormGradient<T>& norm, T* out) {
  for_runs<T>(pixels, lanes, [=](int64_t lane, int64_t first, int64_t count) {
    const Vector<T> scale = read(norm.scale + lane);
    if (!norm.shift) {
      for (int64_t i = first; i < first + count; ++i)
        write(out + i * lanes + lane, scale * read(g.data + i * g.pixel + lane));
      return;
    }
    const Vector<T> mean = read(norm.mean + lane), shift = read(norm.shift + lane);
    const Vector<T> slope = read(norm.slope + lane);
    for (int64_t i = first; i < first + count; ++i) {
      const Vector<T> centred = read(z + i * lanes + lane) - mean;
      write(out + i * lanes + lane,
            scale * (read(g.data + i * g.pixel + lane) - shift - centred * slope));
    }
  });
}

template <class T>
void normalize(Grid<const T> z, Size size, int64_t lanes, const T* scale, const T* mean,
               bool with_relu, Grid<T> out) {
  for_rows<T>(size.height, lanes, [=](int64_t y, int64_t lane) {
    const T* from = z.at(y, 0).data + lane;
    T* to = out.at(y, 0).data + lane;
    const Vector<T> factor = scale ? read(scale + lane) : splat(T{1});
    const Vector<T> center = mean ? read(mean + lane) : Vector<T>{};
    for (int64_t x = 0; x < size.width; ++x) {
      Vector<T> value = read(from + x * z.pixel);
      if (scale) value = factor * (value - center);
      write(to + x * out.pixel, with_relu ? relu<T>(value) : value);
    }
  });
}

template <class T>
void affine(Grid<const T> z, Size size, int64_t lanes, const T* scale, const T* mean,
            const T* shift, Grid<T> out) {
  for_rows<T>(size.height, lanes, [=](int64_t y, int64_t lane) {
    const T* from = z.at(y, 0).data + lane;
    T* to = out.at(y, 0).data + lane;
    const Vector<T> factor = read(scale + lane), center = read(mean + lane);
    const Vector<T> offset = read(shift + lane);
    for (int64_t x = 0; x < size.width; ++x)
      write(to + x * out.pixel, factor * (read(from + x * z.pixel) - center) + offset);
  });
}

template <class T>
void mask(Grid<const T> seen, Grid<const T> g, Size size, int64_t lanes, bool add, Grid<T> out) {
  for_rows<T>(size.height, lanes, [=](int64_t y, int64_t lane) {
    const T* shown = seen.at(y, 0).data + lane;
    const T* from = g.at(y, 0).data + lane;
    T* to = out.at(y, 0).data + lane;
    for (int64_t x = 0; x < size.width; ++x) {
      const Vector<T> value = read(from + x * g.pixel);
      const Vector<T> kept = read(shown + x * seen.pixel) <= 0 ? Vector<T>{} : value;
      write(to + x * out.pixel, add ? read(to + x * out.pixel) + kept : kept);
    }
  });
}

template <class T>
void mask_and_sum(Grid<const T> seen, Grid<const T> g, Grid<const T> z, const T* mean, Size size,
                  int64_t lanes, bool streaming, Grid<T> out, double* sums, double* products) {
  for_grid_runs<T>(size, lanes, [=](int64_t lane, int64_t y, int64_t begin, int64_t pixels) {
    const T* shown = seen.at(y, begin).data + lane;
    const T* from = g.at(y, begin).data + lane;
    const T* features = z.at(y, begin).data + lane;
    T* to = out.at(y, begin).data + lane;
    const Vector<T> center = read(mean + lane);
    Vector<T> sum = {}, product = {};
    for (int64_t i = 0; i < pixels; ++i) {
      const Vector<T> kept =
          read(shown + i * seen.pixel) <= 0 ? Vector<T>{} : read(from + i * g.pixel);
      T* at = to + i * out.pixel;
      streaming ? stream(at, kept) : write(at, kept);
      sum += kept;
      product += kept * (read(features + i * z.pixel) - center);
    }
    add_to<T>(sums + lane, sum);
    add_to<T>(products + lane, product);
  });
  if (streaming) stream_end();
}

template <class T>
void add(Grid<const T> in, Size size, int64_t lanes, Grid<T> out) {
  for_rows<T>(size.height, lanes, [=](int64_t y, int64_t lane) {
    const T* from = in.at(y, 0).data + lane;
    T* to = out.at(y, 0).data + lane;
    for (int64_t x = 0; x < size.width; ++x)
      write(to + x * out.pixel, read(to + x * out.pixel) + read(from + x * in.pixel));
  });
}

#define DA2S_INSTANTIATE(T)                                                                        \
  template void moments(const T*, int64_t, int64_t, const T*, double*, double*);                   \
  template void lane_sums(Grid<const T>, int64_t, int64_t, double*);                               \
  template void lane_products(Grid<const T>, const Factor<T>*, int64_t, Size, int64_t);            \
  template void weighed_gradient(Grid<const T>, const Weighed<T>*, int64_t, Size, int64_t,         \
                                 Grid<T>);                                                         \
  template void mix(const Mixed<T>*, int64_t, Size, int64_t, bool, Grid<T>);                       \
  template void norm_gradient(Grid<const T>, const T*, int64_t, int64_t, const NormGradient<T>&,   \
                              T*);                                                                 \
  template void normalize(Grid<const T>, Size, int64_t, const T*, const T*, bool, Grid<T>);        \
  template void affine(Grid<const T>, Size, int64_t, const T*, const T*, const T*, Grid<T>);       \
  template void mask(Grid<const T>, Grid<const T>, Size, int64_t, bool, Grid<T>);                  \
  template void mask_and_sum(Grid<const T>, Grid<const T>, Grid<const T>, const T*, Size, int64_t, \
                             bool, Grid<T>, double*, double*);                                     \
  template void add(Grid<const T>, Size, int64_t, Grid<T>);
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast::DA2S_ISA
