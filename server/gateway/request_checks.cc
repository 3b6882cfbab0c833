#include "server/gateway/request_checks.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <span>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "model/digest/sha256.h"
#include "server/gateway/model_choice.h"
#include "server/runtime/status.h"
#include "server/wire/name_size.h"
#include "server/wire/sampling.h"

namespace llava {
namespace {

constexpr size_t kMaxIdBytes = 128;
constexpr size_t kMaxTitleBytes = 1024;
constexpr int kMaxMetadata = 64;
constexpr size_t kMaxMetadataKeyBytes = 128;
constexpr size_t kMaxMetadataValueBytes = 4096;
constexpr size_t kMaxSystemPromptBytes = 256u << 10;
constexpr uint32_t kDefaultPageSize = 50;
constexpr uint32_t kMaxPageSize = 1000;
constexpr size_t kImageIdDigits = 64;
constexpr int64_t kMaxIdleExpirySeconds = int64_t{3650} * 24 * 3600;

absl::Status At(absl::string_view field, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(field, ": ", status.message()));
}

absl::Status CheckOverflow(v1::ContextOverflow value) {
  if (v1::ContextOverflow_IsValid(value)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("context_overflow has the unknown value ", value));
}

// Zero: the gateway's default.
absl::Status CheckIdleExpiry(const google::protobuf::Duration& value) {
  const bool whole = value.nanos() >= 0 && value.nanos() < 1'000'000'000;
  if (whole && value.seconds() >= 0 && value.seconds() <= kMaxIdleExpirySeconds) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("idle_expiry must be from 0 (the gateway's default) to ",
                   kMaxIdleExpirySeconds / (24 * 3600), " days"));
}

// What CreateSession and UpdateSession have in common; both messages have these fields.
template <typename Fields>
absl::Status CheckSessionFields(const Fields& fields) {
  auto status = CheckBytes("title", fields.title().size(), kMaxTitleBytes);
  if (status.ok()) {
    status = CheckBytes("system_prompt", fields.system_prompt().size(), kMaxSystemPromptBytes);
  }
  if (!status.ok()) return status;
  if (static_cast<int>(fields.metadata().size()) > kMaxMetadata) {
    return absl::InvalidArgumentError(absl::StrCat("metadata has ", fields.metadata().size(),
                                                   " entries, allowed are ", kMaxMetadata));
  }
  for (const auto& [key, value] : fields.metadata()) {
    if (key.empty() || key.size() > kMaxMetadataKeyBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a metadata key has ", key.size(), " bytes, allowed are 1 to ", kMaxMetadataKeyBytes));
    }
    status = CheckBytes(absl::StrCat("metadata[", key, "]"), value.size(), kMaxMetadataValueBytes);
    if (!status.ok()) return status;
  }
  if (status = CheckIdleExpiry(fields.idle_expiry()); !status.ok()) return status;
  if (status = CheckOverflow(fields.context_overflow()); !status.ok()) return status;
  return CheckSampling(fields.sampling());
}

absl::Status CheckBlank(absl::string_view field, const std::string& text, int images) {
  if (images > 0 || !absl::StripAsciiWhitespace(text).empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is empty and there is no picture; ask something"));
}

absl::StatusOr<StoredImage> ReadImageInput(v1::ImageInput& input, const GatewayOptions& options) {
  switch (input.source_case()) {
    case v1::ImageInput::kData:
      return ReadImageFile(std::move(*input.mutable_data()), options);
    case v1::ImageInput::kId: {
      const std::string& id = input.id();
      const bool hex = std::all_of(id.begin(), id.end(), [](char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
      });
      if (!hex || id.size() != kImageIdDigits) {
        return absl::InvalidArgumentError(
            "id is not one of UploadImage (64 hex digits in lower case)");
      }
      StoredImage image;
      image.info.set_id(id);
      return image;
    }
    case v1::ImageInput::kUrl:
      return absl::UnimplementedError(
          "url: no pictures are fetched here (see --picture-url-hosts); send the picture itself");
    case v1::ImageInput::SOURCE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("has neither id nor data nor url");
}

absl::Status CheckCount(const google::protobuf::RepeatedPtrField<v1::ImageInput>& inputs,
                        const std::string& field, const GatewayOptions& options) {
  if (inputs.size() <= options.max_images_per_turn) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " has ", inputs.size(),
                                                 " pictures, allowed in one message are ",
                                                 options.max_images_per_turn));
}

absl::StatusOr<std::vector<StoredImage>> ReadImages(
    google::protobuf::RepeatedPtrField<v1::ImageInput>& inputs, const std::string& field,
    const GatewayOptions& options) {
  if (auto status = CheckCount(inputs, field, options); !status.ok()) return status;
  std::vector<StoredImage> images;
  for (int i = 0; i < inputs.size(); ++i) {
    auto image = ReadImageInput(inputs[i], options);
    if (!image.ok()) return At(absl::StrCat(field, "[", i, "]"), image.status());
    images.push_back(*std::move(image));
  }
  return images;
}

uint64_t ImageBytes(const google::protobuf::RepeatedPtrField<v1::ImageInput>& images) {
  uint64_t bytes = 0;
  for (const v1::ImageInput& image : images) bytes += image.data().size();
  return bytes;
}

}  // namespace

absl::Status CheckTurnBytes(uint64_t bytes, const GatewayOptions& options) {
  if (bytes <= options.max_turn_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("text and images of the request have ", bytes,
                                                 " bytes, allowed are ", options.max_turn_bytes,
                                                 "; send pictures with UploadImage"));
}

absl::Status CheckSessionId(const std::string& id) {
  if (id.empty()) {
    return absl::InvalidArgumentError("session_id is empty; begin a session with CreateSession");
  }
  return CheckBytes("session_id", id.size(), kMaxIdBytes);
}

absl::Status CheckCreateSession(const v1::CreateSessionRequest& request) {
  if (auto status = CheckModelBytes("model", request.model()); !status.ok()) return status;
  if (auto status = ParseModelChoice(request.model()).status(); !status.ok()) return status;
  return CheckSessionFields(request);
}

absl::Status CheckUpdateSession(const v1::UpdateSessionRequest& request) {
  if (auto status = CheckSessionId(request.session().id()); !status.ok()) return status;
  if (request.update_mask().paths().empty()) {
    return absl::InvalidArgumentError(
        "update_mask is empty; name the fields to change: title, metadata, system_prompt, "
        "sampling, idle_expiry, context_overflow");
  }
  for (const std::string& path : request.update_mask().paths()) {
    if (path != "title" && path != "metadata" && path != "system_prompt" && path != "sampling" &&
        path != "idle_expiry" && path != "context_overflow") {
      return absl::InvalidArgumentError(
          absl::StrCat("update_mask names \"", path.substr(0, 64),
                       "\"; changeable are: title, metadata, system_prompt, sampling, "
                       "idle_expiry, context_overflow"));
    }
  }
  if (ChangesSampling(request)) return CheckSessionFields(request.session());
  v1::Session rest = request.session();  // a client may send back all that it has read
  rest.clear_sampling();
  return CheckSessionFields(rest);
}

bool ChangesSampling(const v1::UpdateSessionRequest& request) {
  const auto& paths = request.update_mask().paths();
  return std::find(paths.begin(), paths.end(), "sampling") != paths.end();
}

absl::Status CheckTurnId(const std::string& id) {
  if (id.empty()) {
    return absl::InvalidArgumentError(
        "turn_id is empty; turn_started and ListTurns name the turns of a session");
  }
  return CheckBytes("turn_id", id.size(), kMaxIdBytes);
}

absl::Status CheckOnDisconnect(v1::OnDisconnect value, bool session) {
  if (value == v1::ON_DISCONNECT_DETACH && !session) {
    return absl::InvalidArgumentError(
        "on_disconnect: ON_DISCONNECT_DETACH needs a session: without one nobody can come back "
        "for the answer");
  }
  if (v1::OnDisconnect_IsValid(value)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("on_disconnect has the unknown value ", value));
}

absl::StatusOr<uint32_t> PageSize(uint32_t requested) {
  if (requested > kMaxPageSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_size is ", requested, ", allowed are up to ", kMaxPageSize));
  }
  return requested == 0 ? kDefaultPageSize : requested;
}

absl::Status CheckChat(const v1::ChatRequest& request) {
  if (!request.adapter_id().empty()) return UnimplementedField("adapter_id");
  const bool session = request.messages().empty();
  const std::string& key = request.idempotency_key();
  if (auto status = CheckBytes("idempotency_key", key.size(), kMaxIdBytes); !status.ok()) {
    return status;
  }
  if (!key.empty() && !session) {
    return absl::InvalidArgumentError(
        "idempotency_key belongs to a session; a call without one can be sent again as it is");
  }
  if (auto status = CheckOnDisconnect(request.on_disconnect(), session); !status.ok()) {
    return status;
  }
  if (auto status = CheckSampling(request.sampling()); !status.ok()) return status;
  if (auto status = CheckModelBytes("model.name", request.model().name()); !status.ok()) {
    return status;
  }
  if (request.messages().empty()) return CheckSessionId(request.session_id());
  if (!request.session_id().empty() || !request.text().empty() || !request.images().empty()) {
    return absl::InvalidArgumentError(
        "messages are for calls without a session; leave session_id, text and images unset, or "
        "messages");
  }
  return absl::OkStatus();
}

absl::Status CheckPictureCounts(const v1::ChatRequest& request, const GatewayOptions& options) {
  if (auto status = CheckCount(request.images(), "images", options); !status.ok()) return status;
  for (int i = 0; i < request.messages_size(); ++i) {
    auto status =
        CheckCount(request.messages(i).images(), absl::StrCat("messages[", i, "].images"), options);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StoredImage>> ReadMessage(
    const std::string& text, google::protobuf::RepeatedPtrField<v1::ImageInput>* images,
    const GatewayOptions& options) {
  if (auto status = CheckBlank("text", text, images->size()); !status.ok()) return status;
  if (auto status = CheckTurnBytes(text.size() + ImageBytes(*images), options); !status.ok()) {
    return status;
  }
  return ReadImages(*images, "images", options);
}

absl::StatusOr<Prompt> ReadConversation(
    google::protobuf::RepeatedPtrField<v1::ChatMessage>* messages, const GatewayOptions& options) {
  uint64_t bytes = 0;
  for (const v1::ChatMessage& message : *messages) {
    bytes += message.text().size() + ImageBytes(message.images());
  }
  if (auto status = CheckTurnBytes(bytes, options); !status.ok()) return status;
  Prompt prompt;
  v1::Role before = v1::ROLE_UNSPECIFIED;
  for (int i = 0; i < messages->size(); ++i) {
    v1::ChatMessage& message = *messages->Mutable(i);
    const std::string field = absl::StrCat("messages[", i, "]");
    const v1::Role role = message.role();
    const bool in_order = role == v1::ROLE_SYSTEM      ? i == 0
                          : role == v1::ROLE_USER      ? before != v1::ROLE_USER
                          : role == v1::ROLE_ASSISTANT ? before == v1::ROLE_USER
                                                       : false;
    if (!in_order) {
      return absl::InvalidArgumentError(
          absl::StrCat(field,
                       ".role is out of order: an optional system message comes first, then "
                       "user and assistant in turn"));
    }
    before = role;
    if (role != v1::ROLE_USER) {
      if (!message.images().empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat(field, ": only user messages have pictures"));
      }
      prompt.messages.push_back({role, message.text(), {}, {}});
      continue;
    }
    auto status = CheckBlank(absl::StrCat(field, ".text"), message.text(), message.images_size());
    if (!status.ok()) return status;
    auto images = ReadImages(*message.mutable_images(), absl::StrCat(field, ".images"), options);
    if (!images.ok()) return images.status();
    for (const StoredImage& image : *images) {
      if (!image.bytes) {
        return absl::InvalidArgumentError(
            absl::StrCat(field, ": without a session pictures have no ids; send the file as data"));
      }
    }
    prompt.AddUser(message.text(), *images);
  }
  if (before != v1::ROLE_USER) {
    return absl::InvalidArgumentError("messages must end with a user message");
  }
  return prompt;
}

absl::StatusOr<StoredImage> ReadImageFile(std::string bytes, const GatewayOptions& options) {
  StoredImage image;
  try {
    const ImageHeader header =
        ReadImageHeader(std::span(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()),
                        options.image_limits());
    image.info.set_id(ToHex(HashBytes(bytes)));
    image.info.set_format(ToString(header.format));
    image.info.set_size_bytes(bytes.size());
    image.info.set_width(header.width);
    image.info.set_height(header.height);
  } catch (...) {
    return FromException(std::current_exception());
  }
  image.bytes = std::make_shared<const std::string>(std::move(bytes));
  return image;
}

}  // namespace llava
