#include "model/nn/step_rows.h"

#include <sstream>
#include <stdexcept>

namespace llava {
namespace {

template <class... Parts>
[[noreturn]] void Refuse(const Parts&... parts) {
  std::ostringstream message;
  message << "decoder: ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace

StepRows PlanStepRows(const DecoderConfig& config, int64_t num_blocks, at::IntArrayRef rows,
                      std::span<const StepSequence> sequences, std::span<const int64_t> wanted) {
  StepRows plan;
  for (const StepSequence& sequence : sequences) {
    if (sequence.tokens < 1 || sequence.computed < 0) Refuse("a sequence without tokens");
    const int64_t length = sequence.computed + sequence.tokens;
    if (length > config.max_position_embeddings) {
      Refuse("a sequence of ", length, " tokens is longer than the model's context of ",
             config.max_position_embeddings);
    }
    if (static_cast<int64_t>(sequence.blocks.size()) < BlocksOf(length)) {
      Refuse(sequence.blocks.size(), " blocks for a sequence of ", length, " tokens");
    }
    for (int64_t i = 0; i < BlocksOf(length); ++i) {
      if (sequence.blocks[i] < 0 || sequence.blocks[i] >= num_blocks) {
        Refuse("block ", sequence.blocks[i], " of ", num_blocks);
      }
    }
    for (int64_t position = sequence.computed; position < length; ++position) {
      plan.positions.push_back(static_cast<int32_t>(position));
      plan.slots.push_back(static_cast<int32_t>(
          sequence.blocks[position / kKvBlockTokens] * kKvBlockTokens + position % kKvBlockTokens));
    }
  }
  const auto count = static_cast<int64_t>(plan.positions.size());
  if (count == 0 || rows.size() != 2 || rows[0] != count || rows[1] != config.hidden_size) {
    Refuse("rows of shape ", rows, ", expected [", count, ", ", config.hidden_size, "]");
  }
  for (const int64_t row : wanted) {
    if (row < 0 || row >= count) Refuse("row ", row, " of ", count);
  }
  return plan;
}

void CheckIds(const DecoderConfig& config, std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= config.vocab_size) {
      Refuse("token id ", id, " is not in the vocabulary of ", config.vocab_size);
    }
  }
}

void CheckCopy(int32_t from, int32_t to, int64_t num_blocks) {
  if (from < 0 || from >= num_blocks || to < 0 || to >= num_blocks) {
    Refuse("copying block ", from, " to ", to, " of ", num_blocks);
  }
}

}  // namespace llava
