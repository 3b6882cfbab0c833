#include "server/llm/scheduler.h"

#include <algorithm>
#include <cstddef>

namespace llava {

bool CanJoin(int64_t longest_tokens, const Load& load, const Capacity& capacity) {
  return load.running < capacity.max_running &&
         load.kv_tokens + longest_tokens <= capacity.kv_tokens;
}

std::vector<int64_t> PlanStep(std::span<const SequenceView> running, int64_t prefill_chunk) {
  std::vector<int64_t> tokens(running.size(), 0);
  std::vector<size_t> prompts;
  for (size_t i = 0; i < running.size(); ++i) {
    if (running[i].prefill_left == 0) {
      tokens[i] = 1;
    } else {
      prompts.push_back(i);
    }
  }
  std::stable_sort(prompts.begin(), prompts.end(),
                   [&](size_t a, size_t b) { return running[a].priority > running[b].priority; });
  for (const size_t i : prompts) {
    tokens[i] = std::min(running[i].prefill_left, prefill_chunk);
    prefill_chunk -= tokens[i];
  }
  return tokens;
}

}  // namespace llava
