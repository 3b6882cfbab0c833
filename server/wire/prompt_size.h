#pragma once

// How much text and how many pictures a prompt can have, the same in gateway and LLM service.

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace llava {

// INVALID_ARGUMENT (reason CONTEXT_LENGTH) in words by which clients know it: LangChain and LiteLLM
// look into the message only. `prompt`: what it has; `advice`: what to do.
absl::Status PromptTooLong(const std::string& prompt, uint64_t context_tokens,
                           const std::string& advice);
// That with both numbers: no prompt of so many tokens can hold the text, whatever its tokenizer.
// Without a context (0) nothing is too long.
absl::Status CheckTextBytes(uint64_t bytes, uint64_t context_tokens);
// Likewise for pictures that a prompt shows, each as often as it does, of at least so many tokens.
absl::Status CheckPictureTokens(uint64_t pictures, uint64_t least_tokens, uint64_t context_tokens);

}  // namespace llava
