#pragma once

// How much text a prompt can have, the same in gateway and LLM service.

#include <cstdint>

#include "absl/status/status.h"

namespace llava {

// INVALID_ARGUMENT (reason CONTEXT_LENGTH) with both numbers: no prompt of so many tokens can hold
// the text, whatever its tokenizer. Without a context (0) nothing is too long.
absl::Status CheckTextBytes(uint64_t bytes, uint64_t context_tokens);

}  // namespace llava
