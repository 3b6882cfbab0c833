#pragma once

// Which tokens may come next, so that a text becomes one that an automaton accepts.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/grammar/automaton.h"
#include "model/grammar/configurations.h"
#include "model/grammar/vocabulary.h"

namespace llava::grammar {

// An automaton for a vocabulary, with what was found out about both so far: all answers under one
// constraint share it. Thread-safe; whoever uses it waits for others no longer than for a mask.
class Constraint {
 public:
  // No text of the automaton may begin with a space. Every byte must be a token
  // (Vocabulary::missing_byte), else there may be no way on.
  Constraint(std::shared_ptr<const Automaton> automaton,
             std::shared_ptr<const Vocabulary> vocabulary);

  struct Usage {
    size_t bytes = 0;             // remembered, roughly
    size_t times_begun_anew = 0;  // because that were too many
    uint64_t looked_at = 0;       // states and edges, so far
  };
  Usage usage();

 private:
  friend class Matcher;
  // What sets with one local set have in common.
  struct LocalMask {
    std::vector<uint64_t> tokens;   // that they allow, but for those below ...
    std::vector<uint32_t> escapes;  // ... these nodes, where they may differ
    size_t most_places = 0, most_seen = 0;
  };
  struct Work {
    explicit Work(std::shared_ptr<const Automaton> automaton) : sets(std::move(automaton)) {}
    Configurations sets;
    std::unordered_map<int32_t, LocalMask> masks;  // by local set
    size_t mask_bytes = 0;
    std::vector<uint32_t> visits;  // the last walk that met each set
    uint32_t walk = 0;
  };
  class Walk;

  // To be called with the lock. What there is, or something new if that has grown too large.
  std::shared_ptr<Work> Current();
  void FillMask(Work& work, int32_t set, bool begun, std::span<uint64_t> mask) const;
  const LocalMask& MaskOf(Work& work, int32_t local) const;

  const std::shared_ptr<const Automaton> automaton_;
  const std::shared_ptr<const Vocabulary> vocabulary_;
  std::mutex mutex_;
  std::shared_ptr<Work> work_;
  size_t times_begun_anew_ = 0;
  uint64_t looked_at_before_ = 0;  // in what is forgotten
};

// One text under a constraint. One thread.
class Matcher {
 public:
  explicit Matcher(std::shared_ptr<Constraint> constraint);

  // Takes the next token. False: it is not allowed, and the matcher of no more use.
  bool Advance(int32_t token);
  // The text may end here.
  bool complete() const { return complete_; }
  // It must: nothing can follow.
  bool finished() const { return finished_; }
  // A bit for each id of the vocabulary: whether it may come next. Only the first of `mask` if that
  // has fewer.
  void FillMask(std::span<uint64_t> mask);

 private:
  // To be called with the lock.
  Constraint::Work& Here();

  const std::shared_ptr<Constraint> constraint_;
  std::shared_ptr<Constraint::Work> work_;
  int32_t set_ = 0;
  bool begun_ = false, complete_ = false, finished_ = false;
};

}  // namespace llava::grammar
