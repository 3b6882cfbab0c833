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

}  // namespace llava
