#pragma once

#include <grpcpp/channel.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/bench/samples.h"
#include "llava/v1/chat.pb.h"

namespace llava::bench {

// The conversations that are held, and how many.
struct LoadOptions {
  // Closed loop (`rate` 0): so many sessions at a time, the next begins when one ends. Open loop:
  // sessions begin at random moments, `rate` of them a second on average, however long the others
  // take; those beyond `sessions` at a time are dropped and counted.
  int sessions = 8;
  double rate = 0;
  int turns = 3;              // questions of a session, one after the other's answer
  int idle_sessions = 0;      // held open beside them without a question
  double warmup_seconds = 0;  // before the measured time
  double seconds = 30;        // measured
  uint64_t max_turns = 0;     // ends the run earlier; 0: no limit
  std::chrono::milliseconds timeout{120'000};  // of one answer

  std::vector<std::string> prompts = {};  // drawn from; empty: random words
  int prompt_words = 32;                  // of a question made of random words
  std::vector<std::string> pictures =
      {};                        // bytes of picture files, for the first question of a session
  bool unique_pictures = false;  // no two alike, so that each must be encoded
  std::string api_key = {};      // empty: none is sent
  std::string model = {};
  v1::SamplingParams sampling = {};
  uint64_t seed = 1;  // of words and moments
  // The pieces of the answers are readings of the steady clock in nanoseconds, as those of the
  // stand-ins of tests/bench are: their age on arrival is measured.
  bool stamps = false;
};

// Now and then during a run: what was reached so far.
struct Progress {
  double seconds = 0;
  bool warming_up = false;
  uint64_t turns = 0, failed = 0, pieces = 0;
  int running = 0;
};

// Holds the conversations over `channels` (sessions take them in turn) and measures. Blocks until
// all answers have ended. Once `stop` is true it cancels those under way, of which nothing is told,
// and returns with what there is. Sessions are
// deleted at their end. A session whose turn failed is given up and, closed loop, another begins
// after a tenth of a second.
Samples RunLoad(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                const LoadOptions& options, const std::atomic<bool>& stop,
                const std::function<void(const Progress&)>& on_progress);

}  // namespace llava::bench
