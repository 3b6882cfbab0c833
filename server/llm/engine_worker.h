#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/llm/engine.h"
#include "server/llm/scheduler.h"

namespace llava {

// Computes nothing useful, but everything a request needs: a picture through the projector, a
// prompt and a token through the decoder. Throws if that fails or gives a logit that is not finite.
void SelfTest(ModelRunner& runner, const LanguageInfo& info);

// The loop of one worker: takes jobs, steps its sequences, tells their sinks. One thread.
class EngineWorker {
 public:
  EngineWorker(LlmEngine& engine, ModelRunner& runner);

  // Until the engine stops (empty result) or the device is of no use any more (why). All jobs taken
  // are answered by then.
  std::string Run();

 private:
  using Clock = GenerateJob::Clock;

  void Join(GenerateJob job);
  void DropGoneAndLate();
  // One forward call and what follows. False: it threw; its sequences have failed.
  bool Step();
  // After a step: hands the logits (empty unless sampled) to the sequence. True: it has ended.
  bool Deliver(Sequence& sequence, std::span<const float> logits);
  void Finish(Sequence& sequence, bool late);
  // The caller hung up: because it wanted to, or because its deadline came.
  void FailGone(Sequence& sequence);
  void Fail(Sequence& sequence, const absl::Status& status, const char* reason);
  void Leave(const Sequence& sequence, const std::string& reason);
  void Release(int64_t longest_tokens, const std::string& reason);
  void FailAll(const absl::Status& status);
  void ShowKvBytes();

  LlmEngine& engine_;
  ModelRunner& runner_;
  EngineMetrics& metrics_;
  std::vector<std::unique_ptr<Sequence>> running_;
  Load load_;
  int64_t shown_kv_bytes_ = 0;
};

}  // namespace llava
