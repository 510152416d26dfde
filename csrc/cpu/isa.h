// Kernels for more than one instruction set in one library.
//
// The library must run on any x86-64 and on arm64, so nothing in it is compiled for the build
// machine's processor. setup.py compiles a source by its name:
//
//   csrc/cpu/**/<operation>.cpp       once, for the baseline: argument checks, allocation,
//                                     parallel_for, registration's targets. May include torch's
//                                     stable headers.
//   csrc/cpu/**/<operation>.simd.cpp  the inner loops, on plain pointers: once per line of
//                                     isa_flags.txt, with the flags there and -DDA2S_ISA=<name>.
//                                     Other processors than x86-64 have the portable one alone.
//
// An operation with inner loops has a header that both include:
//
//   // csrc/cpu/mixed_sum.h
//   #include "isa.h"
//   namespace da2s_fast {
//   DA2S_DECLARE_SIMD(void mixed_sum_rows(const float* const* inputs, float* out, int64_t n);)
//   }
//
//   // csrc/cpu/mixed_sum.simd.cpp
//   #include "mixed_sum.h"
//   namespace da2s_fast::DA2S_ISA {
//   void mixed_sum_rows(const float* const* inputs, float* out, int64_t n) { ... }
//   }
//
//   // csrc/cpu/mixed_sum.cpp: runs the variant chosen for this processor. Overloads and return
//   // values work; make the choice once per chunk, not per element.
//   DA2S_SIMD_CALL(mixed_sum_rows, inputs, out, n);
//
// Inside a .simd.cpp, `#ifdef __AVX2__` (true for avx512 too) and `#ifdef __AVX512F__` guard
// intrinsics; plain loops and compiler vector extensions need no guard. Vectors may be wider than
// the instruction set's: the compiler splits them. Everything it defines must live in namespace
// da2s_fast::DA2S_ISA or be static (an anonymous namespace there is fine), and it must not
// instantiate templates or inline functions of torch or the standard library that are not forced
// inline (std::vector, std::function, ...): the linker keeps one copy of such a function for the
// whole library, and if it is the AVX-512 one, the other paths die with an illegal instruction.
// tests/test_packaging.py checks the objects for that. <cstdint>, <cstddef>, <cmath> on floats and
// doubles, and <immintrin.h> are safe.
//
// The best that the processor has is chosen when the library is loaded; the environment variable
// DA2S_ISA=portable|avx2|avx512, read then, forces a choice. Results of two instruction sets differ
// in rounding.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#define DA2S_HAS_AVX2 1
#define DA2S_HAS_AVX512 1
#endif

namespace da2s_fast {

enum class Isa { portable, avx2, avx512 };

// What this library is compiled for, the best last.
constexpr Isa kCompiledIsas[] = {
    Isa::portable,
#ifdef DA2S_HAS_AVX2
    Isa::avx2,
#endif
#ifdef DA2S_HAS_AVX512
    Isa::avx512,
#endif
};

// The instruction set the kernels of this process use. Throws std::runtime_error if DA2S_ISA names
// one that is unknown, not compiled in, or not supported by this processor.
Isa chosen_isa();

// Whether an instruction set is compiled in and this processor and system support it.
bool isa_runs_here(Isa isa);

const char* isa_name(Isa isa);

}  // namespace da2s_fast

#ifdef DA2S_HAS_AVX512
#define DA2S_DECLARE_SIMD(...) \
  namespace portable {         \
  __VA_ARGS__                  \
  }                            \
  namespace avx2 {             \
  __VA_ARGS__                  \
  }                            \
  namespace avx512 {           \
  __VA_ARGS__                  \
  }
#define DA2S_SIMD_CALL(function, ...)                    \
  (::da2s_fast::chosen_isa() == ::da2s_fast::Isa::avx512 \
       ? ::da2s_fast::avx512::function(__VA_ARGS__)      \
   : ::da2s_fast::chosen_isa() == ::da2s_fast::Isa::avx2 \
       ? ::da2s_fast::avx2::function(__VA_ARGS__)        \
       : ::da2s_fast::portable::function(__VA_ARGS__))
#else
#define DA2S_DECLARE_SIMD(...) \
  namespace portable {         \
  __VA_ARGS__                  \
  }
#define DA2S_SIMD_CALL(function, ...) ::da2s_fast::portable::function(__VA_ARGS__)
#endif
