// Conversions between element types and the precision computed in, without branches so that loops
// over them vectorize. Only for *.simd.cpp (csrc/cpu/isa.h says why).
#pragma once

#include <cstring>

#include "scalar.h"

#define DA2S_INLINE inline __attribute__((always_inline))

namespace da2s_fast::DA2S_ISA {
namespace {

DA2S_INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

DA2S_INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

DA2S_INLINE float load(float value) { return value; }

DA2S_INLINE double load(double value) { return value; }

DA2S_INLINE float load(BFloat16 value) { return from_bits(uint32_t{value.bits} << 16); }

// Exponent and mantissa move into place; a product with 2^112 then mends the exponent's bias, for
// denormal numbers too. Infinity and NaN, above the largest finite number, get the full exponent.
DA2S_INLINE float load(Float16 value) {
  const uint32_t sign = (uint32_t{value.bits} & 0x8000u) << 16;
  const float scaled = from_bits((uint32_t{value.bits} & 0x7fffu) << 13) * 0x1p112f;
  const uint32_t special = scaled >= 65536.0f ? 0x7f800000u : 0u;
  return from_bits(to_bits(scaled) | special | sign);
}

DA2S_INLINE void store(float value, float* out) { *out = value; }

DA2S_INLINE void store(double value, double* out) { *out = value; }

// To nearest, ties to even; NaN stays NaN, which plain rounding could carry over to infinity.
DA2S_INLINE void store(float value, BFloat16* out) {
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

DA2S_INLINE void store(float value, Float16* out) {
  const uint32_t bits = to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the sum with 0.5 rounds to multiples of 2^-24, the spacing of denormal numbers.
  const uint32_t denormal = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t half = magnitude < (113u << 23) ? denormal : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u : half;  // 65536 and above
  half = magnitude > 0x7f800000u ? 0x7e00u : half;   // NaN
  out->bits = static_cast<uint16_t>(half | sign);
}

}  // namespace
}  // namespace da2s_fast::DA2S_ISA
