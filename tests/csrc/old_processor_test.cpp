// The same choice on a processor that has none of the instruction sets: isa.cpp once more, told so.
#define da2s_fast da2s_fast_on_an_old_processor
#define __builtin_cpu_supports(feature) false
#include "cpu/isa.cpp"
#undef da2s_fast

#include "check.h"

using namespace da2s_fast_on_an_old_processor;

DA2S_TEST(an_old_processor_gets_portable_kernels) {
  DA2S_CHECK(isa_runs_here(Isa::portable));
  DA2S_CHECK(!isa_runs_here(Isa::avx2));
  DA2S_CHECK(!isa_runs_here(Isa::avx512));
  const char* forced = std::getenv("DA2S_ISA");
  const std::string name = forced == nullptr || !*forced ? "portable" : forced;
  if (name == "portable") {
    DA2S_CHECK(chosen_isa() == Isa::portable);
    return;
  }
  std::string message;
  try {
    chosen_isa();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  DA2S_CHECK(message == "DA2S_ISA is '" + name +
                            "', which cannot run here: set it to one of those "
                            "that can (portable), or unset it.");
}
