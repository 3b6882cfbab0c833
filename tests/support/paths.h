#pragma once

// Where this tree and its build stand. Defined in a generated source, so that no object of a test
// knows it and ccache finds all of them again from another clone.

#include <string>

namespace llava {

std::string SourceDir();
std::string ProgramPath(const std::string& name);  // of the build, as "llava-eval"

}  // namespace llava
