#pragma once

// Who joins a worker, who computes what in its next step, and who must give way. Pure decisions
// over plain numbers: no tensors, no clock, no threads.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "server/llm/step_cost.h"

namespace llava {

// What a worker has to give.
struct Capacity {
  int max_running = 32;
  int64_t available_blocks = 0;  // of keys and values
};

// True if a sequence that needs `blocks` for its prompt can join `running` others now. One more
// block for each of them is left alone, so that none has to give way at once.
bool CanJoin(int64_t blocks, int64_t running, const Capacity& capacity);

// How well a worker suits a request of whose prompt it has `cached` rows: the longest prefix wins,
// unless little is left of the worker or the prefix is a small matter. `load`: the share of it that
// is taken, 0 to 1.
double RouteScore(int64_t cached, double load);

// A running sequence.
struct SequenceView {
  int64_t left = 1;      // rows known and not computed yet
  bool decodes = false;  // the prompt is computed: `left` is the token sampled last
  int64_t room = 0;      // rows that fit into its blocks; of a prompt all that are left
  int32_t priority = 0;
  int64_t computed = 0;                          // rows that are computed
  std::span<const int64_t> picture_starts = {};  // rows at which pictures begin, ascending
};

// Of the rows at which pictures begin those that are among `rows` behind `computed` ones.
std::span<const int64_t> StartsWithin(std::span<const int64_t> picture_starts, int64_t computed,
                                      int64_t rows);

struct StepLimits {
  // Of all prompts together: rows, and seconds, in which at least `least_rows` are computed
  // whatever they take. A row takes row_seconds and key_seconds for each row up to it.
  int64_t prompt_rows = 512;
  double prompt_seconds = std::numeric_limits<double>::infinity();
  int64_t least_rows = 0;
  double row_seconds = 0, key_seconds = 0;
  int64_t pictures = std::numeric_limits<int64_t>::max();  // that may begin

  int64_t available_blocks = 0;  // for those that decode: prompts have theirs
};

struct StepPlan {
  std::vector<int64_t> rows;    // that each computes; 0: it waits
  std::vector<bool> preempted;  // gives its blocks back, to begin again when there is room
};

// The next step of the sequences `running`, in order of their arrival. All that decode take a row.
// Prompts share what the limits give, rows and time: half of it goes to the first one by priority
// and arrival, so that it comes to its end; the rest to those with the least left, so that short
// ones are not held up by long ones. A prompt stops before a picture that may not begin. Where one
// that decodes is short of a block, the last one by priority and arrival gives way, be it itself;
// prompts have had all of their blocks since they joined. `regained(i)`: blocks that come back if i
// gives way; asked only then.
StepPlan PlanStep(std::span<const SequenceView> running, const StepLimits& limits,
                  const std::function<int64_t(size_t)>& regained);

// What prompts may take of a step of the answers `decoding`, so that these wait at most `slowdown`
// times as long for their next tokens as they would without, and for one picture to be projected;
// without answers, `most_rows`. Says nothing of blocks.
StepLimits LimitPrompts(const StepCost& cost, const StepWork& decoding, int64_t most_rows,
                        double slowdown);

}  // namespace llava
