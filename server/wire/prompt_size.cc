#include "server/wire/prompt_size.h"

#include "absl/strings/str_cat.h"
#include "server/runtime/error_reason.h"

namespace llava {
namespace {

// More text per token of the context than any tokenizer packs into a token.
constexpr uint64_t kMaxBytesPerToken = 64;

}  // namespace

absl::Status PromptTooLong(const std::string& prompt, uint64_t context_tokens,
                           const std::string& advice) {
  return WithReason(
      absl::InvalidArgumentError(absl::StrCat("the prompt is too long: ", prompt,
                                              "; this model's maximum context length is ",
                                              context_tokens, " tokens, ", advice)),
      kReasonContextLength);
}

absl::Status CheckTextBytes(uint64_t bytes, uint64_t context_tokens) {
  const uint64_t limit = kMaxBytesPerToken * context_tokens;
  if (limit == 0 || bytes <= limit) return absl::OkStatus();
  return PromptTooLong(
      absl::StrCat(bytes, " bytes of text"), context_tokens,
      absl::StrCat("which hold at most ", limit, " bytes; shorten the conversation"));
}

absl::Status CheckPictureTokens(uint64_t pictures, uint64_t least_tokens, uint64_t context_tokens) {
  const uint64_t tokens = pictures * least_tokens;
  if (context_tokens == 0 || tokens < context_tokens) return absl::OkStatus();
  return PromptTooLong(absl::StrCat(pictures, " pictures of ", least_tokens, " tokens or more, ",
                                    tokens, " together"),
                       context_tokens, "text and answer included; drop older turns or pictures");
}

}  // namespace llava
