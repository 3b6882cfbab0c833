#include "server/llm/constraint_cache.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/text/utf8.h"
#include "server/runtime/seconds.h"

namespace llava {
namespace {

// Each may remember some 25 MB.
constexpr size_t kMostEntries = 16;

std::shared_ptr<const grammar::Vocabulary> VocabularyOf(const Tokenizer& tokenizer) {
  std::vector<std::string> tokens;
  std::vector<bool> drops_space;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    tokens.push_back(tokenizer.IsSpecial(id) ? "" : tokenizer.TokenBytes(id));
    std::string bytes = tokens.back();
    drops_space.push_back(bytes.starts_with(' ') &&
                          StreamDecoder(tokenizer).Push(id) != TakeWholeUtf8(bytes));
  }
  return std::make_shared<const grammar::Vocabulary>(std::move(tokens), std::move(drops_space));
}

absl::Status StatusOf(const grammar::Vocabulary& vocabulary) {
  const auto missing = vocabulary.missing_byte();
  if (!missing) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("SamplingParams.constraint: this model's tokenizer has no token for the byte ",
                   *missing, " alone, so not every text could be written"));
}

}  // namespace

ConstraintCache::ConstraintCache(const Tokenizer& tokenizer, Metrics& metrics)
    : vocabulary_(VocabularyOf(tokenizer)),
      status_(StatusOf(*vocabulary_)),
      compile_seconds_(
          metrics.Histogram("llava_llm_constraint_compile_seconds", "Compiling a constraint")),
      hits_(metrics.Counter("llava_llm_constraint_hits_total",
                            "Answers whose constraint was compiled already")) {}

std::shared_ptr<grammar::Constraint> ConstraintCache::Find(const std::string& name) {
  const auto entry = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& each) { return each.first == name; });
  if (entry == entries_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, entry);
  return entry->second;
}

absl::StatusOr<std::shared_ptr<grammar::Constraint>> ConstraintCache::Get(const std::string& name,
                                                                          const Compile& compile) {
  if (!status_.ok()) return status_;
  {
    MutexLock lock(mutex_);
    if (auto known = Find(name)) {
      hits_.Increment();
      return known;
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  auto automaton = compile();
  if (!automaton.ok()) return automaton.status();
  auto constraint = std::make_shared<grammar::Constraint>(*std::move(automaton), vocabulary_);
  compile_seconds_.Observe(Seconds(std::chrono::steady_clock::now() - begin));
  MutexLock lock(mutex_);
  if (auto known = Find(name)) return known;  // of another thread, meanwhile
  entries_.emplace_front(name, std::move(constraint));
  if (entries_.size() > kMostEntries) entries_.pop_back();
  return entries_.front().second;
}

}  // namespace llava
