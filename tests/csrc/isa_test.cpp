// The choice of an instruction set, as DA2S_ISA asks for it.
#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#include "check.h"

using namespace da2s_fast;

DA2S_TEST(the_instruction_set_asked_for_is_chosen) {
  const char* forced = std::getenv("DA2S_ISA");
  if (forced != nullptr && *forced) DA2S_CHECK(std::strcmp(isa_name(chosen_isa()), forced) == 0);
  DA2S_CHECK(isa_runs_here(chosen_isa()));
}
