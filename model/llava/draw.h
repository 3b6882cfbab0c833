#pragma once

// Sampling where nothing but the logits counts, which a device may do by itself.

#include <cstdint>
#include <optional>
#include <span>

#include "model/llava/sampler.h"
#include "model/nn/token_choice.h"

namespace llava {

// What Sample does with `options` for the token at `position` of an answer; none if it looks at
// earlier tokens, or refuses the options.
std::optional<TokenChoice> ChoiceOf(const SamplingOptions& options, uint64_t position);

// The token that `choice` means: what a device draws. Throws as Sample.
int32_t DrawToken(std::span<const float> logits, const TokenChoice& choice);

}  // namespace llava
