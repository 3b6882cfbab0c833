#include "server/runtime/build_info.h"

namespace llava {

std::string BuildVersion() { return LLAVA_VERSION; }

std::string BuildCommit() { return LLAVA_COMMIT; }

std::string BuildLine(const std::string& program) {
  return program + " " + BuildVersion() + " (commit " + BuildCommit() + ", gcc " + __VERSION__ +
         ")";
}

}  // namespace llava
