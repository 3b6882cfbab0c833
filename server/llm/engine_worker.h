#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/llm/engine.h"
#include "server/llm/kv_blocks.h"
#include "server/llm/scheduler.h"
#include "server/llm/step_cost.h"
#include "server/llm/step_watch.h"

namespace llava {

// Computes nothing useful, but everything a request needs: a picture through the projector, a
// prompt and a token through the decoder. Throws if that fails or gives a logit that is not finite.
// Overwrites the first blocks: for a runner without sequences.
void WarmUp(ModelRunner& runner, const LanguageInfo& info, const DevicePiece& piece);

// The loop of one worker: takes jobs, steps its sequences, tells their sinks. One thread but for
// the const methods.
class EngineWorker {
 public:
  // `steps`: of this life of the worker; around every call to the device.
  EngineWorker(LlmEngine& engine, ModelRunner& runner, int number, DeviceTurn& turn,
               StepWatch& steps);
  ~EngineWorker();

  // Until the engine stops or gives this worker up (empty result), or the device is of no use any
  // more (why). All jobs taken are answered by then. Throws WorkerGivenUp.
  std::string Run();
  // A step succeeded.
  bool served() const { return served_; }
  // Answers all jobs while the thread hangs in a call to the device. By another thread, which has
  // given this one up.
  void Abandon();

  // Thread-safe: how well a job would fit here, see RouteScore.
  double Score(const GenerateJob& job) const;

 private:
  using Clock = GenerateJob::Clock;

  friend class LlmEngine;
  // Thread-safe: it has room for the job, nobody paused goes first, its device is not being tested,
  // and no call to it takes suspiciously long.
  bool CanTake(const GenerateJob& job) const;

  int number() const { return number_; }

  // Makes a call to the device when its turn has come; it is expected to take `seconds`. Throws
  // what it throws, or WorkerGivenUp.
  void OnDevice(DeviceTurn::Held (DeviceTurn::*turn)(), double seconds,
                const std::function<void()>& call);

  // Takes jobs and resumes what is paused, by priority.
  void LetIn();
  void TakeJobs();
  void Join(GenerateJob job);
  // Computes a prompt ahead, for whoever comes with it later.
  void Prewarm(const WarmPrompt& prompt);
  // Tells the device whether answers are in the making here.
  void SetBusy(bool busy);
  // Gives the sequence its blocks: what the cache holds of it, and room for the rest.
  void Begin(Sequence& sequence);
  void GiveBack(Sequence& sequence, bool keep);
  void Pause(Sequence& sequence);
  // By priority and arrival, as far as there is room.
  void ResumePaused();
  void SetPaused(Sequence& sequence, bool paused);
  bool AnyPaused() const;
  void DropGoneAndLate();
  // One forward call and what follows. An error: it threw; its sequences are in failed_.
  absl::Status Step();
  StepPlan Plan(const std::vector<Sequence*>& active) const;
  // Throws if the device cannot even run the self-test. Forgets what is cached.
  void CheckDevice();
  // After a step: hands the token drawn, or StepLogits::kNotDrawn and the logits, to the sequence.
  // True: it has ended.
  bool Deliver(Sequence& sequence, int32_t drawn, std::span<const float> logits);
  void Finish(Sequence& sequence, bool late);
  // The caller hung up: because it wanted to, or because its deadline came.
  void FailGone(Sequence& sequence);
  void Fail(Sequence& sequence, const absl::Status& status, const char* reason,
            bool keep_blocks = true);
  void Leave(Sequence& sequence, const std::string& reason, bool keep_blocks);
  void FailStepped(const absl::Status& status);
  void FailAll(const absl::Status& status);
  void ShowBlocks();
  double Bytes(int64_t blocks) const;

  LlmEngine& engine_;
  ModelRunner& runner_;
  const int number_;
  DeviceTurn& turn_;
  StepWatch& steps_;
  EngineMetrics& metrics_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of arrival, paused ones included
  // Their step threw: told so when it is known whether it was they or the device. No blocks.
  std::vector<std::unique_ptr<Sequence>> failed_;
  StepCost cost_;

  mutable Mutex mutex_;  // taken behind the engine's
  KvBlocks blocks_ LLAVA_GUARDED_BY(mutex_);
  int64_t active_ LLAVA_GUARDED_BY(mutex_) = 0;             // sequences that hold blocks
  std::multiset<int32_t> paused_ LLAVA_GUARDED_BY(mutex_);  // their priorities
  bool checking_ LLAVA_GUARDED_BY(mutex_) = false;          // in CheckDevice
  // When the call at hand has lasted suspiciously long; kNever: none is.
  static constexpr Clock::time_point kNever = Clock::time_point::max();
  std::atomic<Clock::time_point> late_at_ = kNever;
  bool served_ = false;
  bool busy_ = false;
  bool warming_ = false;  // computes a prompt ahead

  // What the gauges and counters know of this worker.
  struct Shown {
    int64_t used = 0, idle = 0, total = 0, evicted = 0;
  };
  Shown shown_;
};

}  // namespace llava
