// What is not a tensor operation: how this build was made and which instruction set it uses. The
// operators live in libraries without Python, because pybind11 does not compile under the limited
// API that lets one operator library serve every torch from 2.10.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/isa.h"

namespace py = pybind11;

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

py::dict build_info() {
  py::list instruction_sets, usable;
  for (const da2s_fast::Isa isa : da2s_fast::kCompiledIsas) {
    instruction_sets.append(da2s_fast::isa_name(isa));
    if (da2s_fast::isa_runs_here(isa)) usable.append(da2s_fast::isa_name(isa));
  }
  py::dict info;
  info["compiler"] = kCompiler;
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["flags"] = DA2S_FLAGS;
  info["torch"] = DA2S_TORCH_VERSION;
  info["instruction_sets"] = instruction_sets;
  info["usable_instruction_sets"] = usable;
  return info;
}

}  // namespace

PYBIND11_MODULE(_build_info, module) {
  module.doc() = "Build information and the instruction set chosen for this process.";
  module.def(
      "build_info", &build_info,
      "Compiler, C++ standard, flags, torch version built against, instruction sets compiled "
      "and usable on this processor.");
  module.def(
      "instruction_set", [] { return std::string(da2s_fast::isa_name(da2s_fast::chosen_isa())); },
      "The instruction set in use; RuntimeError if DA2S_ISA asks for one that cannot run here.");
}
