#pragma once

// Public requests checked field by field, before any work. Every field that is set has an effect,
// is refused as INVALID_ARGUMENT, or is refused as UNIMPLEMENTED by name.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/chat.pb.h"
#include "server/gateway/gateway_options.h"
#include "server/gateway/prompt.h"
#include "server/gateway/store_records.h"

namespace llava {

absl::Status CheckSessionId(const std::string& id);
// All of them but whether their constraint can be obeyed: to know that makes work.
absl::Status CheckCreateSession(const v1::CreateSessionRequest& request);
absl::Status CheckUpdateSession(const v1::UpdateSessionRequest& request);
bool ChangesSampling(const v1::UpdateSessionRequest& request);
absl::Status CheckTurnId(const std::string& id);
// Without a session nobody could come back for an answer.
absl::Status CheckOnDisconnect(v1::OnDisconnect value, bool session);
// 0 = 50. INVALID_ARGUMENT above 1000.
absl::StatusOr<uint32_t> PageSize(uint32_t requested);

// All of a ChatRequest but its pictures and messages (the next two).
absl::Status CheckChat(const v1::ChatRequest& request);
// What can be said of pictures that are not there yet: how many, of each message.
absl::Status CheckPictureCounts(const v1::ChatRequest& request, const GatewayOptions& options);
// Of text and pictures together.
absl::Status CheckTurnBytes(uint64_t bytes, const GatewayOptions& options);
// The new message of a session: not empty, pictures within the limits. Their files are taken out of
// `images`, as they are large.
absl::StatusOr<std::vector<StoredImage>> ReadMessage(
    const std::string& text, google::protobuf::RepeatedPtrField<v1::ImageInput>* images,
    const GatewayOptions& options);
// The conversation of a call without session, likewise.
absl::StatusOr<Prompt> ReadConversation(
    google::protobuf::RepeatedPtrField<v1::ChatMessage>* messages, const GatewayOptions& options);

// A picture file: format and limits from its header, id from its content. Decodes nothing.
absl::StatusOr<StoredImage> ReadImageFile(std::string bytes, const GatewayOptions& options);

}  // namespace llava
