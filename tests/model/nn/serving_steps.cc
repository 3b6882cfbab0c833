#include "tests/model/nn/serving_steps.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include <ATen/ATen.h>

#include "model/nn/step_rows.h"

namespace llava {

ServingSteps::ServingSteps(ServingDecoder& decoder) : decoder_(decoder) {
  // From the last to the first, every third first: neighbours in a sequence are none in memory.
  for (int64_t start = 0; start < 3; ++start) {
    for (int64_t block = start; block < decoder.num_blocks(); block += 3) {
      free_.push_back(static_cast<int32_t>(block));
    }
  }
}

int32_t ServingSteps::TakeBlock(Sequence& sequence) {
  if (free_.empty()) throw std::runtime_error("test: no free block");
  const int32_t block = free_.back();
  free_.pop_back();
  sequence.blocks.push_back(block);
  sequence.owned.push_back(block);
  return block;
}

int ServingSteps::Begin() {
  sequences_.emplace_back();
  return static_cast<int>(sequences_.size()) - 1;
}

int ServingSteps::Fork(int parent, int64_t tokens) {
  const int child = Begin();
  Sequence& to = sequences_[child];
  const Sequence& from = sequences_[parent];
  const int64_t whole = tokens / kKvBlockTokens;
  to.blocks.assign(from.blocks.begin(), from.blocks.begin() + whole);
  if (whole * kKvBlockTokens < tokens) decoder_.CopyBlock(from.blocks[whole], TakeBlock(to));
  to.computed = tokens;
  return child;
}

void ServingSteps::End(int sequence) {
  std::vector<int32_t>& owned = sequences_[sequence].owned;
  free_.insert(free_.end(), owned.begin(), owned.end());
  sequences_[sequence] = {};
}

at::Tensor ServingSteps::Step(std::span<const Piece> pieces) {
  std::vector<int32_t> ids;
  std::vector<StepSequence> step;
  for (const Piece& piece : pieces) {
    Sequence& sequence = sequences_.at(piece.sequence);
    const auto tokens = static_cast<int64_t>(piece.ids.size());
    while (static_cast<int64_t>(sequence.blocks.size()) < BlocksOf(sequence.computed + tokens)) {
      TakeBlock(sequence);
    }
    ids.insert(ids.end(), piece.ids.begin(), piece.ids.end());
    step.push_back({.tokens = tokens, .computed = sequence.computed, .blocks = sequence.blocks});
    sequence.computed += tokens;
  }
  std::vector<int64_t> all(ids.size());
  std::iota(all.begin(), all.end(), 0);
  return decoder_.Step(decoder_.Embed(ids), step, all);
}

at::Tensor ServingSteps::Whole(std::span<const int32_t> ids, int64_t most) {
  const int sequence = Begin();
  std::vector<at::Tensor> parts;
  for (size_t begin = 0; begin < ids.size(); begin += most) {
    const Piece piece{sequence, ids.subspan(begin, std::min<size_t>(most, ids.size() - begin))};
    parts.push_back(Step({&piece, 1}));
  }
  End(sequence);
  return at::cat(parts);
}

std::vector<int32_t> TestIds(int64_t count, int64_t seed, int64_t size) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>((i * 17 + i * i * 3 + seed * 29) % size));
  }
  return ids;
}

}  // namespace llava
