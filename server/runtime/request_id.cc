#include "server/runtime/request_id.h"

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"

namespace llava {

std::string RandomId() {
  thread_local std::random_device device;
  std::string id;
  for (int i = 0; i < 4; ++i) id += absl::StrCat(absl::Hex(device(), absl::kZeroPad8));
  return id;
}

std::string AcceptRequestId(std::string_view given) {
  const bool good =
      !given.empty() && given.size() <= 128 &&
      std::all_of(given.begin(), given.end(), [](char c) { return c >= '!' && c <= '~'; });
  return good ? std::string(given) : RandomId();
}

std::string RequestId(grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find("x-request-id");
  std::string id = AcceptRequestId(
      found == metadata.end() ? std::string_view()
                              : std::string_view(found->second.data(), found->second.size()));
  context.AddInitialMetadata("x-request-id", id);
  return id;
}

}  // namespace llava
