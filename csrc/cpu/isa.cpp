#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace da2s_fast {
namespace {

bool avx2_runs_here() {
#ifdef DA2S_HAS_AVX2
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

struct Choice {
  Isa isa;
  std::string error;
};

Choice choose() {
  const char* forced = std::getenv("DA2S_ISA");
  const std::string name = forced == nullptr ? "" : forced;
  if (name.empty()) return {avx2_runs_here() ? Isa::avx2 : Isa::portable, ""};
  if (name == isa_name(Isa::portable)) return {Isa::portable, ""};
  if (name != isa_name(Isa::avx2))
    return {Isa::portable, "DA2S_ISA is '" + name +
                               "', which is no known instruction set: set it to portable or avx2, "
                               "or unset it."};
  if (!avx2_runs_here())
    return {Isa::portable,
            "DA2S_ISA is 'avx2', but no AVX2 with FMA can run here: set it to portable, or unset "
            "it."};
  return {Isa::avx2, ""};
}

// Made while the library is loaded, so that all parts of a process agree even if the environment
// changes later.
const Choice choice = choose();

}  // namespace

Isa chosen_isa() {
  if (!choice.error.empty()) throw std::runtime_error(choice.error);
  return choice.isa;
}

const char* isa_name(Isa isa) { return isa == Isa::avx2 ? "avx2" : "portable"; }

}  // namespace da2s_fast
