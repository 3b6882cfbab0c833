#pragma once

// Constraints of a version: its vocabulary, and those that were used last, compiled.

#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/grammar/matcher.h"
#include "model/text/tokenizer.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"

namespace llava {

// Thread-safe.
class ConstraintCache {
 public:
  using Compile = std::function<absl::StatusOr<std::shared_ptr<const grammar::Automaton>>()>;

  ConstraintCache(const Tokenizer& tokenizer, Metrics& metrics);

  // UNIMPLEMENTED, with the reason: the tokenizer is not made for it.
  const absl::Status& status() const { return status_; }
  // The constraint of this name, which tells all that `compile` goes by; compiled, on the calling
  // thread, unless it is known. Errors of `compile`, or status().
  absl::StatusOr<std::shared_ptr<grammar::Constraint>> Get(const std::string& name,
                                                           const Compile& compile);

 private:
  using Entry = std::pair<std::string, std::shared_ptr<grammar::Constraint>>;

  std::shared_ptr<grammar::Constraint> Find(const std::string& name) LLAVA_REQUIRES(mutex_);

  const std::shared_ptr<const grammar::Vocabulary> vocabulary_;
  const absl::Status status_;
  prometheus::Histogram& compile_seconds_;
  prometheus::Counter& hits_;
  Mutex mutex_;
  std::list<Entry> entries_ LLAVA_GUARDED_BY(mutex_);  // last used first
};

}  // namespace llava
