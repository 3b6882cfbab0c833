#pragma once

#include <cstdint>
#include <string>

namespace llava {

// Whether so many bytes of memory are free; if not, says on stderr that the self-test of `what` is
// left out for that.
bool MemoryForSelfTest(uint64_t bytes, const std::string& what);

}  // namespace llava
