#include "server/llm/sequence.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "model/llava/draw.h"
#include "server/runtime/seconds.h"

namespace llava {

Sequence::Sequence(uint64_t id, GenerateJob job, const Tokenizer& tokenizer, Clock::time_point now)
    : id_(id),
      matcher_(std::move(job.matcher)),
      job_(std::move(job)),
      tokenizer_(tokenizer),
      answer_(tokenizer, job_.stop),
      joined_(now),
      last_(now) {
  if (!job_.resumed_ids.empty() || job_.resumed_text_bytes > 0) {
    answer_.Resume(job_.resumed_ids, job_.resumed_text_bytes);
  }
  if (matcher_ && matcher_->finished()) answer_.Complete();
  told_ids_ = answer_.ids().size();
  queue_seconds_ = Seconds(joined_ - job_.received);
}

std::vector<int32_t> Sequence::AllIds() const {
  std::vector<int32_t> ids = job_.ids;
  ids.insert(ids.end(), answer_.ids().begin(), answer_.ids().end());
  return ids;
}

absl::Status Sequence::Take(std::span<const float> logits, Clock::time_point now) {
  if (!std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); })) {
    return RefuseLogits();
  }
  if (matcher_) {
    if (auto status = Mask(logits); !status.ok()) return status;
  }
  return Accept(Sample(matcher_ ? masked_ : logits, job_.sampling, job_.ids, answer_.ids()), logits,
                now);
}

absl::Status Sequence::Mask(std::span<const float> logits) {
  const auto begin = Clock::now();
  allowed_.resize((logits.size() + 63) / 64);
  matcher_->FillMask(allowed_);
  // Tokens that end an answer, also those that would otherwise be text.
  const auto end = [&](int32_t id) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) return;
    const uint64_t bit = uint64_t{1} << (id % 64);
    uint64_t& word = allowed_[static_cast<size_t>(id) / 64];
    word = matcher_->complete() ? word | bit : word & ~bit;
  };
  end(tokenizer_.eos_id());
  for (const int32_t id : answer_.stop_token_ids()) end(id);
  masked_.assign(logits.begin(), logits.end());
  bool any = false;
  for (size_t i = 0; i < masked_.size(); ++i) {
    const bool allowed = ((allowed_[i / 64] >> (i % 64)) & 1) != 0;
    any |= allowed;
    if (!allowed) masked_[i] = -INFINITY;
  }
  mask_seconds_ = Seconds(Clock::now() - begin);
  // Not what is wrong with the model: it counts as no fault of its version.
  if (!any && !job_.stop.stop_token_ids.empty()) {
    return absl::InvalidArgumentError(
        "SamplingParams.constraint and stop_token_ids leave no token: all that could come next are "
        "among stop_token_ids");
  }
  return absl::OkStatus();
}

absl::Status Sequence::TakeDrawn(int32_t id, Clock::time_point now) {
  if (id < 0) return RefuseLogits();
  return Accept(id, {}, now);
}

std::optional<TokenChoice> Sequence::Choice() const {
  if (job_.logprobs || matcher_) return std::nullopt;
  return ChoiceOf(job_.sampling, answer_.ids().size());
}

absl::Status Sequence::RefuseLogits() {
  refused_logits_ = true;
  return absl::InternalError("the model gave logits that are not finite for this request");
}

absl::Status Sequence::Accept(int32_t id, std::span<const float> logits, Clock::time_point now) {
  if (num_sampled_++ == 0) {
    prefill_seconds_ = Seconds(now - joined_);
    first_ = now;
    last_gap_seconds_ = Seconds(now - job_.received);
    if (!job_.sink->Started(queue_seconds_, cached_tokens_))
      return absl::CancelledError("the client is gone");
  } else {
    last_gap_seconds_ = Seconds(now - last_);
  }
  last_ = now;

  AnswerDelta delta;
  delta.text = answer_.Push(id);
  const std::vector<int32_t>& ids = answer_.ids();
  if (matcher_ && told_ids_ < ids.size()) {
    // What was drawn is what the mask allows.
    if (!matcher_->Advance(id)) return absl::InternalError("a token that the constraint forbids");
    if (matcher_->finished()) answer_.Complete();
  }
  if (told_ids_ < ids.size() && job_.logprobs) {
    delta.logprobs.push_back(LogprobsOf(logits, id, *job_.logprobs));
  }
  if (!Tell(std::move(delta))) return absl::CancelledError("the client is gone");
  return absl::OkStatus();
}

bool Sequence::Tell(AnswerDelta delta) {
  const std::vector<int32_t>& ids = answer_.ids();
  delta.token_ids.assign(ids.begin() + static_cast<std::ptrdiff_t>(told_ids_), ids.end());
  told_ids_ = ids.size();
  if (delta.text.empty() && delta.token_ids.empty()) return !job_.sink->gone();
  delta.text_offset = answer_.text_bytes() - delta.text.size();
  return job_.sink->Delta(delta);
}

AnswerSummary Sequence::Finish(bool late, Clock::time_point now) {
  if (num_sampled_ == 0)
    job_.sink->Started(queue_seconds_, cached_tokens_);  // resumed behind its last token
  AnswerDelta rest;
  rest.text = answer_.Finish();
  Tell(std::move(rest));
  AnswerSummary summary;
  if (answer_.state() == Answer::State::kStopped) {
    // A stop text cuts an answer that has an end of its own.
    summary.end = matcher_ && answer_.cut() ? AnswerEnd::kLength : AnswerEnd::kStop;
  } else if (answer_.state() == Answer::State::kLength) {
    summary.end = job_.context_bound ? AnswerEnd::kContext : AnswerEnd::kLength;
  } else if (late) {
    summary.end = AnswerEnd::kDeadline;
  }
  summary.text_tokens = job_.text_tokens;
  summary.image_tokens = job_.image_tokens;
  summary.cached_tokens = cached_tokens_;
  summary.generated_tokens = answer_.num_generated();
  summary.context_tokens = job_.context_tokens;
  summary.delivered_ids = answer_.DeliveredIds();
  summary.queue_seconds = queue_seconds_;
  summary.prefill_seconds = prefill_seconds_;
  if (num_sampled_ > 0) {
    summary.decode_seconds = Seconds(last_ - first_);
    summary.first_token_seconds = Seconds(first_ - job_.received);
  }
  summary.total_seconds = Seconds(now - job_.received);
  return summary;
}

}  // namespace llava
