#include "server/gateway/turn_id.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "server/runtime/request_id.h"

namespace llava {

std::string NewTurnId() {
  const auto since_1970 = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::system_clock::now().time_since_epoch());
  return absl::StrCat(absl::Hex(since_1970.count(), absl::kZeroPad12), RandomId().substr(12));
}

}  // namespace llava
