// Vectors of the instruction set a file is compiled for. Only for *.simd.cpp (isa.h says why).
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX2__
// GCC 12 warns of its own intrinsics (bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#define DA2S_INLINE inline __attribute__((always_inline))

namespace da2s_fast::DA2S_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
constexpr bool kManyRegisters = true;  // 32 instead of 16
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
constexpr bool kManyRegisters = false;
#else
constexpr int64_t kVectorBytes = 16;
constexpr bool kManyRegisters = false;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(T));

template <class T>
DA2S_INLINE Vector<T> read(const T* p) {
  Vector<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
DA2S_INLINE void write(T* p, const Vector<T>& v) {
  std::memcpy(p, &v, sizeof v);
}

// Writes past the caches what nobody reads soon: memory need not be read first to be written.
// stream_end() comes before others may read it.
template <class T>
DA2S_INLINE void stream(T* p, const Vector<T>& v) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#else
  write(p, v);
#endif
}
DA2S_INLINE void stream_end() {
#ifdef __AVX2__
  _mm_sfence();
#endif
}

// Reads what several operations use: x86 compilers would rather read it anew with each of them.
template <class T>
DA2S_INLINE Vector<T> read_once(const T* p) {
  Vector<T> v = read(p);
#ifdef __x86_64__
  asm("" : "+v"(v));
#endif
  return v;
}

// Moves a pointer where the compiler does not see it: it would keep a pointer for every pixel, most
// of them in memory.
template <class T>
DA2S_INLINE void step(T*& p, int64_t elements) {
  p += elements;
  asm("" : "+r"(p));
}

template <class T>
DA2S_INLINE Vector<T> splat(T value) {
  return value - Vector<T>{};
}

// `Images` adjacent numbers, repeated until the vector is full: one load on x86.
template <int Images, class T>
DA2S_INLINE Vector<T> repeat(const T* p) {
  if constexpr (Images == 1) {
    return splat(*p);
  } else if constexpr (Images == kLanes<T>) {
    return read(p);
  } else {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4 && Images == 2) {
      double pair;
      std::memcpy(&pair, p, sizeof pair);
      return (Vector<T>)_mm512_set1_pd(pair);
    } else if constexpr (sizeof(T) == 4 && Images == 4) {
      return (Vector<T>)_mm512_broadcast_f32x4(_mm_loadu_ps((const float*)p));
    } else if constexpr (sizeof(T) == 4 && Images == 8) {
      return (Vector<T>)_mm512_broadcast_f32x8(_mm256_loadu_ps((const float*)p));
    }
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4 && Images == 2) {
      double pair;
      std::memcpy(&pair, p, sizeof pair);
      return (Vector<T>)_mm256_set1_pd(pair);
    } else if constexpr (sizeof(T) == 4 && Images == 4) {
      return (Vector<T>)_mm256_broadcast_ps((const __m128*)p);
    }
#endif
    Vector<T> v;
    for (int64_t i = 0; i < kLanes<T>; ++i) v[i] = p[i % Images];
    return v;
  }
}

// sums[i] += v[i], in double.
template <class T>
DA2S_INLINE void add_to(double* sums, const Vector<T>& v) {
  typedef double Wide __attribute__((vector_size(kLanes<T> * sizeof(double))));
  Wide total;
  std::memcpy(&total, sums, sizeof total);
  total += __builtin_convertvector(v, Wide);
  std::memcpy(sums, &total, sizeof total);
}

// NaN is not below 0 and stays.
template <class T>
DA2S_INLINE Vector<T> relu(const Vector<T>& v) {
  return v < 0 ? Vector<T>{} : v;
}

}  // namespace
}  // namespace da2s_fast::DA2S_ISA
