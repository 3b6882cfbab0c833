#pragma once

// A model made of rules, so that every fault and every order can be staged, and who asks it.

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <future>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "model/llava/draw.h"
#include "server/llm/engine.h"
#include "server/llm/kv_blocks.h"
#include "server/llm/model_runner.h"
#include "server/llm/sequence.h"
#include "server/runtime/mutex.h"
#include "tests/support/fixtures.h"
#include "tests/support/slowdown.h"

namespace llava {

// Says token kFirst + n as its n-th token. Prompts may ask for faults by their first id, for
// kHang by any.
class RuleRunner : public ModelRunner {
 public:
  static constexpr int32_t kFirst = 300;
  static constexpr int32_t kThrow = 290, kNan = 291, kRefuse = 292, kHang = 293;

  // Shared with the test.
  struct Switches {
    Mutex mutex;
    CondVar changed;
    bool hold LLAVA_GUARDED_BY(mutex) = false;           // steps wait
    bool held LLAVA_GUARDED_BY(mutex) = false;           // one does
    int holding LLAVA_GUARDED_BY(mutex) = 0;             // so many do
    bool hold_on_end LLAVA_GUARDED_BY(mutex) = false;    // from the next end of a sequence on
    bool dead LLAVA_GUARDED_BY(mutex) = false;           // every step throws
    bool hang LLAVA_GUARDED_BY(mutex) = true;            // steps of kHang do
    int hanging LLAVA_GUARDED_BY(mutex) = 0;             // so many do
    bool hang_copy LLAVA_GUARDED_BY(mutex) = false;      // copies of blocks do
    bool hang_warm_up LLAVA_GUARDED_BY(mutex) = false;   // so do those of no answer
    std::vector<int32_t> begun LLAVA_GUARDED_BY(mutex);  // first ids, in order of joining
    bool draws LLAVA_GUARDED_BY(mutex) = false;          // tokens, where it may
    int64_t drawn LLAVA_GUARDED_BY(mutex) = 0;           // so many
    size_t most_together LLAVA_GUARDED_BY(mutex) = 0;
    int64_t computed_rows LLAVA_GUARDED_BY(mutex) = 0;
    int64_t foreign_rows LLAVA_GUARDED_BY(mutex) = 0;  // found where its own should be
    int alive LLAVA_GUARDED_BY(mutex) = 0;             // runners
    double drift LLAVA_GUARDED_BY(mutex) = -1;         // of their self-tests
    int64_t prepared LLAVA_GUARDED_BY(mutex) = 0;      // answers that the last one is ready for
    std::chrono::microseconds step_time LLAVA_GUARDED_BY(mutex){0};
  };

  RuleRunner(std::shared_ptr<Switches> switches, int64_t blocks)
      : memory_(static_cast<size_t>(blocks)), switches_(std::move(switches)) {
    MutexLock lock(switches_->mutex);
    ++switches_->alive;
  }
  ~RuleRunner() override {
    MutexLock lock(switches_->mutex);
    --switches_->alive;
  }

  double SelfTest(const DevicePiece& piece) override {
    double drift = 0;
    piece([&] {
      MutexLock lock(switches_->mutex);
      drift = switches_->drift;
    });
    return drift;
  }

  std::string Prepare(int64_t sequences, int64_t, const DevicePiece& piece) override {
    piece([&] {
      MutexLock lock(switches_->mutex);
      switches_->prepared = sequences;
    });
    return "";
  }

  void Begin(uint64_t sequence, std::span<const int32_t> ids,
             std::span<const std::shared_ptr<const StoredFeatures>> features) override {
    if (ids[0] == kRefuse) throw std::invalid_argument("no such prompt");
    if (sequence > 0) {
      MutexLock lock(switches_->mutex);
      switches_->begun.push_back(ids[0]);
    }
    State& state = sequences_[sequence] = State();
    size_t picture = 0;
    for (const int32_t id : ids) {
      const int64_t rows = id == kImageToken ? features[picture++]->rows : 1;
      state.ids.insert(state.ids.end(), static_cast<size_t>(rows), id);
    }
    state.said = static_cast<int>(
        std::count_if(ids.begin(), ids.end(), [](int32_t id) { return id >= kFirst; }));
  }
  void End(uint64_t sequence) override {
    sequences_.erase(sequence);
    MutexLock lock(switches_->mutex);
    if (std::exchange(switches_->hold_on_end, false)) switches_->hold = true;
  }

  // What a decoder would do with its memory: every row leaves its id in its block, and no row may
  // find another sequence's there.
  StepLogits Step(std::span<const Part> parts) override {
    std::chrono::microseconds time{0};
    bool draws = false;
    {
      MutexLock lock(switches_->mutex);
      ++switches_->holding;
      while (switches_->hold) {
        switches_->held = true;
        switches_->changed.Wait(switches_->mutex);
      }
      --switches_->holding;
      switches_->held = false;
      if (switches_->dead) throw std::runtime_error("device lost");
      switches_->most_together = std::max(switches_->most_together, parts.size());
      time = switches_->step_time;
      draws = switches_->draws;
      const auto hangs = [&](const Part& part) {
        return part.sequence == 0 ? switches_->hang_warm_up
                                  : Asks(sequences_.at(part.sequence).ids, kHang);
      };
      ++switches_->hanging;
      while (switches_->hang && std::any_of(parts.begin(), parts.end(), hangs)) {
        switches_->changed.Wait(switches_->mutex);
      }
      --switches_->hanging;
    }
    if (time.count() > 0) std::this_thread::sleep_for(time);
    auto logits = std::make_shared<std::vector<float>>();
    std::vector<int32_t> ids;
    for (const Part& part : parts) {
      State& state = sequences_.at(part.sequence);
      if (state.ids[0] == kThrow) throw std::runtime_error("bad step");
      if (part.sequence > 0) Touch(part, state);
      if (!part.sampled) continue;
      std::vector<float> row(kWidth, 0.0f);
      row[static_cast<size_t>(kFirst + state.said++)] = 5;
      if (state.ids[0] == kNan && state.said == 2) row[7] = NAN;
      if (draws) ids.push_back(part.choice ? Draw(row, *part.choice) : StepLogits::kNotDrawn);
      if (draws && part.choice) continue;
      logits->insert(logits->end(), row.begin(), row.end());
    }
    return {logits, logits->data(), kWidth, kWidth, std::move(ids)};
  }
  void CopyBlock(int32_t from, int32_t to) override {
    {
      MutexLock lock(switches_->mutex);
      ++switches_->hanging;
      while (switches_->hang && switches_->hang_copy) switches_->changed.Wait(switches_->mutex);
      --switches_->hanging;
    }
    memory_.at(to) = memory_.at(from);
  }
  int64_t num_blocks() const override { return static_cast<int64_t>(memory_.size()); }
  uint64_t weight_bytes() const override { return 100; }

 private:
  static constexpr int64_t kWidth = 1000, kTokens = KvBlocks::kTokens;

  static bool Asks(const std::vector<int32_t>& ids, int32_t fault) {
    return std::find(ids.begin(), ids.end(), fault) != ids.end();
  }

  int32_t Draw(const std::vector<float>& row, const TokenChoice& choice) {
    MutexLock lock(switches_->mutex);
    ++switches_->drawn;
    try {
      return DrawToken(row, choice);
    } catch (const std::runtime_error&) {
      return StepLogits::kNotFinite;
    }
  }

  struct State {
    std::vector<int32_t> ids;  // read and said
    int said = 0;
  };

  void Touch(const Part& part, State& state) {
    if (part.first == static_cast<int64_t>(state.ids.size())) state.ids.push_back(part.token);
    for (int64_t row = 0; row < part.first + part.rows; ++row) {
      int32_t& there = memory_.at(part.blocks[row / kTokens])[row % kTokens];
      if (row >= part.first) there = state.ids.at(row);
      if (there != state.ids.at(row)) {
        MutexLock lock(switches_->mutex);
        ++switches_->foreign_rows;
      }
    }
    MutexLock lock(switches_->mutex);
    switches_->computed_rows += part.rows;
  }

  std::vector<std::array<int32_t, kTokens>> memory_;
  std::shared_ptr<Switches> switches_;
  std::map<uint64_t, State> sequences_;
};

class Collector : public AnswerSink {
 public:
  bool Started(double, int64_t) override { return !gone_; }
  bool Delta(const AnswerDelta& delta) override {
    ids.insert(ids.end(), delta.token_ids.begin(), delta.token_ids.end());
    count = ids.size();
    return !gone_;
  }
  void Finished(const AnswerSummary& summary) override {
    end = summary.end;
    cached = summary.cached_tokens;
    done_.set_value(absl::OkStatus());
  }
  void Failed(const absl::Status& status) override { done_.set_value(status); }
  bool gone() const override { return gone_; }

  absl::Status Wait() {
    auto future = done_.get_future();
    if (future.wait_for(kSlowdown * std::chrono::seconds(60)) != std::future_status::ready) {
      return absl::InternalError("no end came");
    }
    return future.get();
  }
  void Go() { gone_ = true; }

  std::vector<int32_t> ids;
  std::atomic<size_t> count = 0;  // of ids, while they come
  absl::Status status;            // for who keeps it
  AnswerEnd end = AnswerEnd::kStop;
  int64_t cached = 0;

 private:
  std::promise<absl::Status> done_;
  std::atomic<bool> gone_ = false;
};

// A model of `workers` devices.
inline LoadedLanguage RuleModel(int workers, RunnerFactory factory) {
  LoadedLanguage model;
  model.info.name = "rules";
  model.info.device = "cpu";
  model.info.tokenizer = std::make_shared<Tokenizer>(Tokenizer::Load(FixturesDir() / "tiny-llava"));
  model.info.pictures = PictureShape(FeatureConfig(), 4);
  model.info.feature_width = 1;
  model.info.kv_block_bytes = 160;
  model.info.workers = workers;
  model.factory = std::move(factory);
  return model;
}

inline std::vector<int32_t> RuleIds(size_t count, int32_t id) {
  return std::vector<int32_t>(count, id);
}

// Asks for `tokens` tokens behind a prompt of `prompt` times `first`.
inline GenerateJob RuleJob(int32_t first, uint32_t tokens, std::shared_ptr<AnswerSink> sink,
                           int64_t prompt = 5) {
  GenerateJob job;
  job.ids.assign(static_cast<size_t>(prompt), first);
  job.text_tokens = prompt;
  job.stop.max_new_tokens = tokens;
  job.context_tokens = 1000;
  job.received = GenerateJob::Clock::now();
  job.deadline = GenerateJob::Clock::time_point::max();
  job.sink = std::move(sink);
  return job;
}

}  // namespace llava
