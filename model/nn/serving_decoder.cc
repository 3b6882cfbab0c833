#include "model/nn/serving_decoder.h"

#include <sstream>
#include <stdexcept>

namespace llava {
namespace {

template <typename... Parts>
[[noreturn]] void Refuse(const Parts&... parts) {
  std::ostringstream message;
  message << "decoder: ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace

void CheckStep(const DecoderConfig& config, int64_t num_blocks, const at::Tensor& rows,
               std::span<const StepSequence> sequences, std::span<const int64_t> wanted) {
  if (rows.dim() != 2 || rows.size(1) != config.hidden_size) {
    Refuse("rows of shape ", rows.sizes(), ", expected [T, ", config.hidden_size, "]");
  }
  int64_t total = 0;
  for (const StepSequence& sequence : sequences) {
    const int64_t end = sequence.computed + sequence.tokens;
    if (sequence.tokens < 1 || sequence.computed < 0) {
      Refuse("a sequence of ", sequence.tokens, " new tokens behind ", sequence.computed);
    }
    if (end > config.max_position_embeddings) {
      Refuse("a sequence of ", end, " tokens is longer than the model's context of ",
             config.max_position_embeddings);
    }
    if (static_cast<int64_t>(sequence.blocks.size()) * kKvBlockTokens < end) {
      Refuse(sequence.blocks.size(), " blocks have no room for ", end, " tokens");
    }
    for (const int32_t block : sequence.blocks) {
      if (block < 0 || block >= num_blocks) {
        Refuse("there is no block ", block, ", there are ", num_blocks);
      }
    }
    total += sequence.tokens;
  }
  if (total == 0 || total != rows.size(0)) {
    Refuse(rows.size(0), " rows for sequences of ", total, " new tokens");
  }
  for (const int64_t row : wanted) {
    if (row < 0 || row >= total) Refuse("row ", row, " is wanted of ", total);
  }
}

}  // namespace llava
