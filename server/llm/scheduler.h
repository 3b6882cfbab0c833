#pragma once

// Who joins and who computes what in the next step. Pure decisions over plain numbers: no tensors,
// no clock, no threads.

#include <cstdint>
#include <span>
#include <vector>

namespace llava {

// What one worker can hold.
struct Capacity {
  int max_running = 32;
  int64_t kv_tokens = 0;  // of all sequences together
};

// What it holds: every running sequence counts with the longest it may become.
struct Load {
  int running = 0;
  int64_t kv_tokens = 0;
};

// True if a sequence that may grow to `longest_tokens` can join now: whatever the others do, it
// will never run out of room.
bool CanJoin(int64_t longest_tokens, const Load& load, const Capacity& capacity);

// A running sequence.
struct SequenceView {
  int64_t prefill_left = 0;  // prompt tokens not computed yet; 0: it takes one token a step
  int32_t priority = 0;
};

// Tokens that each running sequence computes in the next step, in the order given; 0: it waits. All
// that decode take one. Prompts share `prefill_chunk` tokens: higher priority first, then in order,
// each as much as it can use, so that one long prompt never stops the others' decoding for longer
// than a chunk.
std::vector<int64_t> PlanStep(std::span<const SequenceView> running, int64_t prefill_chunk);

}  // namespace llava
