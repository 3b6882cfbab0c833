#include "server/wire/prompt_size.h"

#include "absl/strings/str_cat.h"
#include "server/runtime/error_reason.h"

namespace llava {
namespace {

// More text per token of the context than any tokenizer packs into a token.
constexpr uint64_t kMaxBytesPerToken = 64;

}  // namespace

absl::Status CheckTextBytes(uint64_t bytes, uint64_t context_tokens) {
  const uint64_t limit = kMaxBytesPerToken * context_tokens;
  if (limit == 0 || bytes <= limit) return absl::OkStatus();
  return WithReason(
      absl::InvalidArgumentError(
          absl::StrCat("the messages have ", bytes, " bytes of text, a context of ", context_tokens,
                       " tokens (the model's maximum context length) can hold at most ", limit,
                       "; shorten the conversation")),
      kReasonContextLength);
}

absl::Status CheckPictureTokens(uint64_t pictures, uint64_t least_tokens, uint64_t context_tokens) {
  const uint64_t tokens = pictures * least_tokens;
  if (context_tokens == 0 || tokens < context_tokens) return absl::OkStatus();
  return WithReason(absl::InvalidArgumentError(absl::StrCat(
                        "the messages show ", pictures, " pictures of ", least_tokens,
                        " tokens or more, ", tokens, " together; the context has ", context_tokens,
                        " (the model's maximum context length) and text and answer need some. Drop "
                        "older turns or pictures")),
                    kReasonContextLength);
}

}  // namespace llava
