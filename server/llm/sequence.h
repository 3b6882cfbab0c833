#pragma once

// One answer in the making: what it reads, how it samples, whom it tells.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/grammar/matcher.h"
#include "model/llava/answer.h"
#include "model/llava/sampler.h"
#include "model/nn/token_choice.h"
#include "server/llm/feature_store.h"
#include "server/llm/kv_blocks.h"
#include "server/runtime/fair_queue.h"

namespace llava {

// Why an answer ended in an orderly way.
enum class AnswerEnd { kStop, kLength, kContext, kDeadline };

// A piece of an answer.
struct AnswerDelta {
  std::string text;  // whole characters, may be empty
  uint64_t text_offset = 0;
  std::vector<int32_t> token_ids;  // new ones, held-back text included, stop tokens excluded
  std::vector<TokenLogprobs> logprobs;
};

// The account of an answer.
struct AnswerSummary {
  AnswerEnd end = AnswerEnd::kStop;
  int64_t text_tokens = 0, image_tokens = 0;  // of the prompt
  int64_t cached_tokens = 0;                  // of these, found instead of computed
  uint32_t generated_tokens = 0;              // resumed ones and the stop token included
  int64_t context_tokens = 0;                 // of the model
  std::vector<int32_t> delivered_ids;
  double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
  double first_token_seconds = 0, total_seconds = 0;
};

// Who asked. Calls come from the worker's thread (before that, from the one that submits).
class AnswerSink {
 public:
  virtual ~AnswerSink() = default;
  // The prompt is computed. False here or below: the client is gone.
  virtual bool Started(double queue_seconds, int64_t cached_tokens) = 0;
  virtual bool Delta(const AnswerDelta& delta) = 0;
  // Exactly one of these two ends it.
  virtual void Finished(const AnswerSummary& summary) = 0;
  virtual void Failed(const absl::Status& status) = 0;
  virtual bool gone() const = 0;
};

// A request that was checked and is ready to run.
struct GenerateJob {
  using Clock = std::chrono::steady_clock;

  std::vector<int32_t> ids;  // prompt
  int64_t text_tokens = 0, image_tokens = 0;
  std::vector<std::shared_ptr<const StoredFeatures>> features;  // held, so they stay in the store
  std::vector<std::string> feature_keys;                        // FeatureKeyToBytes of each
  std::vector<int64_t> picture_tokens;                          // image tokens of each
  std::string cache_salt;    // shares computed prompts with its like only
  std::vector<RowKey> rows;  // of prompt and resumed ids; LlmEngine::Submit fills it,
                             // who runs it takes it
  SamplingOptions sampling;
  StopOptions stop;            // max_new_tokens already cut to what the context leaves
  bool context_bound = false;  // it was cut
  int64_t context_tokens = 0;
  std::optional<uint32_t> logprobs;
  std::unique_ptr<grammar::Matcher> matcher;  // of a constraint, behind resumed_ids; null: none
  std::vector<int32_t> resumed_ids;           // continue_from
  uint64_t resumed_text_bytes = 0;
  QueuePlace place;
  Clock::time_point received, deadline;
  std::string request_id, session_id;
  std::shared_ptr<AnswerSink> sink;

  int64_t prompt_tokens() const { return text_tokens + image_tokens; }
  // The most tokens it will ever hold.
  int64_t longest_tokens() const {
    return prompt_tokens() +
           std::max<int64_t>(stop.max_new_tokens, static_cast<int64_t>(resumed_ids.size()));
  }
};

// A running job. One thread.
class Sequence {
 public:
  using Clock = GenerateJob::Clock;

  // Throws std::invalid_argument for stop texts or resumed tokens that cannot be.
  Sequence(uint64_t id, GenerateJob job, const Tokenizer& tokenizer, Clock::time_point now);

  // Prompt tokens found in the cache, before the first Take.
  void SetCached(int64_t tokens) { cached_tokens_ = tokens; }
  // Samples from `logits` (over the ids that may be sampled) and tells the sink what is new.
  // INTERNAL: a logit is not finite, nothing was sampled. INVALID_ARGUMENT: no token is left to
  // choose. CANCELLED: the client is gone.
  absl::Status Take(std::span<const float> logits, Clock::time_point now);
  // The same with the token that a runner drew after Choice; negative: a logit is not finite.
  absl::Status TakeDrawn(int32_t id, Clock::time_point now);
  // How a runner may choose the next token by itself; none: Take has to see the logits.
  std::optional<TokenChoice> Choice() const;

  // True when the answer is complete; then call Finish.
  bool complete() const { return answer_.state() != Answer::State::kRunning; }
  // Tells the sink what is left of the text and returns the account, for its Finished. `late`:
  // ended by the deadline.
  AnswerSummary Finish(bool late, Clock::time_point now);

  uint64_t id() const { return id_; }
  const GenerateJob& job() const { return job_; }
  // The token to compute next, once something was sampled or resumed.
  int32_t last_token() const { return answer_.ids().back(); }
  // Everything that was read and written so far, pictures as kImageToken.
  std::vector<int32_t> AllIds() const;

  // Kept by the worker.
  KvTable table;
  bool holds_blocks = false;
  bool paused = false;                  // gave its blocks back; begins again when there is room
  int64_t prompt_rows = 0;              // computed before the next token can be sampled
  std::vector<int64_t> picture_starts;  // PictureStarts, since it last began
  bool decodes() const { return table.computed >= prompt_rows; }
  // Time since the token before, for the first one since the request came; set by Take.
  double last_gap_seconds() const { return last_gap_seconds_; }
  bool started() const { return num_sampled_ > 0; }
  bool first_token() const { return num_sampled_ == 1; }
  // What Take needed to find the tokens that the constraint allows; none without one.
  std::optional<double> mask_seconds() const { return mask_seconds_; }
  // Take refused the logits: they were not finite.
  bool refused_logits() const { return refused_logits_; }
  double queue_seconds() const { return queue_seconds_; }
  double prefill_seconds() const { return prefill_seconds_; }

 private:
  // The next token, with its logits if there are any.
  absl::Status Accept(int32_t id, std::span<const float> logits, Clock::time_point now);
  // masked_: the logits with -infinity for tokens that the constraint forbids. INVALID_ARGUMENT:
  // the tokens that it allows are those that end an answer.
  absl::Status Mask(std::span<const float> logits);
  absl::Status RefuseLogits();
  bool Tell(AnswerDelta delta);

  const uint64_t id_;
  const std::unique_ptr<grammar::Matcher> matcher_;  // null: no constraint
  const GenerateJob job_;
  const Tokenizer& tokenizer_;
  Answer answer_;
  size_t told_ids_ = 0;  // ids the sink knows
  uint32_t num_sampled_ = 0;
  bool refused_logits_ = false;
  std::vector<uint64_t> allowed_;  // by the constraint; kept for the next token, as what follows
  std::vector<float> masked_;
  std::optional<double> mask_seconds_;
  Clock::time_point joined_, first_, last_;
  double queue_seconds_ = 0, prefill_seconds_ = 0, last_gap_seconds_ = 0;
  int64_t cached_tokens_ = 0;
};

}  // namespace llava
