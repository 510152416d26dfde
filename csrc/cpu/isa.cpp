#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace da2s_fast {
namespace {

struct Choice {
  Isa isa;
  std::string error;
};

Choice choose() {
  const char* forced = std::getenv("DA2S_ISA");
  const std::string name = forced == nullptr ? "" : forced;
  Isa best = Isa::portable;
  std::string possible;
  for (const Isa isa : kCompiledIsas) {
    if (!isa_runs_here(isa)) continue;
    if (name == isa_name(isa)) return {isa, ""};
    best = isa;
    possible += (possible.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  if (name.empty()) return {best, ""};
  const bool known = name == isa_name(Isa::avx2) || name == isa_name(Isa::avx512);
  return {Isa::portable, "DA2S_ISA is '" + name + "', which " +
                             (known ? "cannot run here" : "is no known instruction set") +
                             ": set it to one of those that can (" + possible + "), or unset it."};
}

// Made while the library is loaded, so that all parts of a process agree even if the environment
// changes later.
const Choice choice = choose();

}  // namespace

Isa chosen_isa() {
  if (!choice.error.empty()) throw std::runtime_error(choice.error);
  return choice.isa;
}

bool isa_runs_here(Isa isa) {
#ifdef DA2S_HAS_AVX512
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#endif
  return isa == Isa::portable;
}

const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

}  // namespace da2s_fast
