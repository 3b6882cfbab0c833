#include "server/llm/engine_worker.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <stdexcept>
#include <utility>

#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr uint64_t kSelfTestSequence = 0;
constexpr std::chrono::milliseconds kRetryAfter{500};
// A caller whose deadline is so near hung up because of it: its clock and ours race.
constexpr std::chrono::milliseconds kDeadlineSlack{25};

double Seconds(GenerateJob::Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

void SelfTest(ModelRunner& runner, const LanguageInfo& info) {
  StoredFeatures grey{FeatureType::kBFloat16, info.feature_rows, info.feature_width, {}};
  grey.bytes.assign(static_cast<size_t>(2 * grey.rows * grey.width), '\0');
  const std::vector<std::shared_ptr<const StoredFeatures>> features = {
      std::make_shared<const StoredFeatures>(std::move(grey))};
  const std::vector<int32_t> ids = {info.tokenizer->bos_id(), kImageToken,
                                    info.tokenizer->eos_id()};
  const int64_t longest = runner.image_tokens() + 3;
  const int64_t length = runner.Begin(kSelfTestSequence, ids, features, longest);
  std::vector<ModelRunner::Part> parts = {{kSelfTestSequence, length, 0, true}};
  for (int step = 0; step < 2; ++step) {
    const auto logits = runner.Step(parts);
    for (const float logit : logits.at(0)) {
      if (!std::isfinite(logit)) throw std::runtime_error("self-test: a logit is not finite");
    }
    parts = {{kSelfTestSequence, 0, info.tokenizer->eos_id(), true}};
  }
  runner.End(kSelfTestSequence);
}

EngineWorker::EngineWorker(LlmEngine& engine, ModelRunner& runner)
    : engine_(engine), runner_(runner), metrics_(engine.metrics_) {}

std::string EngineWorker::Run() {
  while (true) {
    std::vector<GenerateJob> jobs = engine_.TakeJobs(load_, running_.empty());
    for (GenerateJob& job : jobs) Join(std::move(job));
    if (engine_.stopping_) {
      FailAll(OverloadedError("llm: the process is stopping", kRetryAfter));
      return "";
    }
    DropGoneAndLate();
    if (running_.empty() || Step()) continue;
    try {  // was it these sequences, or the device?
      SelfTest(runner_, engine_.info_);
    } catch (...) {
      const absl::Status status = FromException(std::current_exception());
      FailAll(absl::UnavailableError("llm: the worker of this answer died"));
      return std::string(status.message());
    }
  }
}

void EngineWorker::Join(GenerateJob job) {
  const int64_t longest = job.longest_tokens();
  const std::shared_ptr<AnswerSink> sink = job.sink;
  std::vector<int32_t> ids = job.ids;
  ids.insert(ids.end(), job.resumed_ids.begin(), job.resumed_ids.end());
  const uint64_t id = engine_.next_sequence_++;
  std::unique_ptr<Sequence> sequence;
  try {
    sequence =
        std::make_unique<Sequence>(id, std::move(job), *engine_.info_.tokenizer, Clock::now());
    sequence->prefill_left = runner_.Begin(id, ids, sequence->job().features, longest);
  } catch (...) {
    runner_.End(id);
    Release(longest, "error");
    return sink->Failed(FromException(std::current_exception()));
  }
  metrics_.queue_seconds.Observe(sequence->queue_seconds());
  metrics_.text_tokens.Increment(static_cast<double>(sequence->job().text_tokens));
  metrics_.image_tokens.Increment(static_cast<double>(sequence->job().image_tokens));
  if (sequence->complete()) return Finish(*sequence, false);  // resumed behind its last token
  running_.push_back(std::move(sequence));
}

void EngineWorker::DropGoneAndLate() {
  const auto now = Clock::now();
  std::erase_if(running_, [&](const std::unique_ptr<Sequence>& sequence) {
    if (sequence->job().sink->gone()) {
      FailGone(*sequence);
      return true;
    }
    if (sequence->job().deadline > now) return false;
    if (sequence->started()) {
      Finish(*sequence, true);
    } else {
      Fail(*sequence, absl::DeadlineExceededError("the deadline passed before the first token"),
           "deadline");
    }
    return true;
  });
}

bool EngineWorker::Step() {
  const auto begin = Clock::now();
  std::vector<SequenceView> views;
  for (const auto& sequence : running_) {
    views.push_back({sequence->prefill_left, sequence->job().place.priority});
  }
  const std::vector<int64_t> tokens = PlanStep(views, engine_.options_.prefill_chunk);
  std::vector<ModelRunner::Part> parts;
  int64_t batch_tokens = 0;
  for (size_t i = 0; i < running_.size(); ++i) {
    if (tokens[i] == 0) continue;
    const Sequence& sequence = *running_[i];
    const bool decodes = sequence.prefill_left == 0;
    parts.push_back({.sequence = sequence.id(),
                     .tokens = decodes ? 0 : tokens[i],
                     .token = decodes ? sequence.last_token() : 0,
                     .sampled = decodes || tokens[i] == sequence.prefill_left});
    batch_tokens += tokens[i];
  }
  metrics_.batch_tokens.Observe(static_cast<double>(batch_tokens));

  std::vector<std::vector<float>> logits;
  absl::Status status;
  try {
    logits = runner_.Step(parts);
  } catch (...) {
    status = FromException(std::current_exception());
    LogError("step failed", {{"error", std::string(status.message())},
                             {"sequences", std::to_string(parts.size())}});
  }
  size_t part = 0, row = 0, kept = 0;
  for (size_t i = 0; i < running_.size(); ++i) {
    bool ended = false;
    if (tokens[i] > 0) {
      Sequence& sequence = *running_[i];
      sequence.prefill_left = std::max<int64_t>(0, sequence.prefill_left - tokens[i]);
      if (!status.ok()) {
        Fail(sequence, absl::InternalError(status.message()), "error");
        ended = true;
      } else if (parts[part].sampled) {
        ended = Deliver(sequence, logits.at(row++));
      }
      ++part;
    }
    if (!ended) std::swap(running_[kept++], running_[i]);
  }
  running_.resize(kept);
  ShowKvBytes();
  metrics_.step_seconds.Observe(Seconds(Clock::now() - begin));
  return status.ok();
}

bool EngineWorker::Deliver(Sequence& sequence, std::span<const float> logits) {
  absl::Status status;
  try {
    status = sequence.Take(logits, Clock::now());
  } catch (...) {
    status = absl::InternalError(FromException(std::current_exception()).message());
  }
  if (absl::IsCancelled(status)) {
    FailGone(sequence);
    return true;
  }
  if (!status.ok()) {
    metrics_.nan_logits.Increment(sequence.refused_logits() ? 1 : 0);
    Fail(sequence, status, "error");
    return true;
  }
  metrics_.generated_tokens.Increment();
  if (sequence.first_token()) {
    metrics_.time_to_first_token_seconds.Observe(sequence.last_gap_seconds());
    metrics_.prefill_seconds.Observe(sequence.prefill_seconds());
  } else {
    metrics_.time_between_tokens_seconds.Observe(sequence.last_gap_seconds());
  }
  if (sequence.complete()) Finish(sequence, false);
  return sequence.complete();
}

void EngineWorker::Finish(Sequence& sequence, bool late) {
  const AnswerSummary summary = sequence.Finish(late, Clock::now());
  Leave(sequence, ToString(summary.end));
  sequence.job().sink->Finished(summary);  // last: who hears of the end finds it accounted for
}

void EngineWorker::FailGone(Sequence& sequence) {
  if (sequence.job().deadline <= Clock::now() + kDeadlineSlack) {
    Fail(sequence, absl::DeadlineExceededError("the deadline passed"), "deadline");
  } else {
    Fail(sequence, absl::CancelledError("the client is gone"), "cancelled");
  }
}

void EngineWorker::Fail(Sequence& sequence, const absl::Status& status, const char* reason) {
  if (absl::IsInternal(status)) {
    LogError("answer failed", {{"request_id", sequence.job().request_id},
                               {"session_id", sequence.job().session_id},
                               {"error", std::string(status.message())}});
  }
  Leave(sequence, reason);
  sequence.job().sink->Failed(status);
}

void EngineWorker::Leave(const Sequence& sequence, const std::string& reason) {
  runner_.End(sequence.id());
  Release(sequence.job().longest_tokens(), reason);
  metrics_.request_duration_seconds.Observe(Seconds(Clock::now() - sequence.job().received));
  ShowKvBytes();
}

void EngineWorker::Release(int64_t longest_tokens, const std::string& reason) {
  load_.kv_tokens -= longest_tokens;
  --load_.running;
  --engine_.running_;
  metrics_.requests_running.Decrement();
  metrics_.FinishedBy(reason).Increment();
}

void EngineWorker::FailAll(const absl::Status& status) {
  for (const auto& sequence : running_) Fail(*sequence, status, "error");
  running_.clear();
}

void EngineWorker::ShowKvBytes() {
  const int64_t now = runner_.kv_bytes();
  metrics_.kv_bytes.Increment(static_cast<double>(now - shown_kv_bytes_));
  shown_kv_bytes_ = now;
}

}  // namespace llava
