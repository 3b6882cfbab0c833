#pragma once

// What became of a teacher's answers: counts, lengths and examples, for programs and for people.

#include <array>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/datagen/quality_gates.h"

namespace llava {

// Of a list of numbers.
class Distribution {
 public:
  void Add(uint64_t value) { values_.push_back(static_cast<uint32_t>(value)); }
  // {"count", "mean", "least", "median", "p95", "most"}; of an empty list only the count.
  nlohmann::ordered_json ToJson() const;

 private:
  std::vector<uint32_t> values_;
};

// One thread.
class InstructReport {
 public:
  // Facts of the run by names in snake case, shown first.
  explicit InstructReport(nlohmann::ordered_json run) : run_(std::move(run)) {}

  void AddKept(ResponseType type, const Screened& screened, bool image_first);
  void AddRejected(ResponseType type, Rule rule, const std::string& id, const std::string& detail);

  // {"run", "kept", "rejected", "image_first", "types": {type: {"planned", "kept", "cut": {rule:
  // n}, "rejected": {rule: n}, "turns", "question_words", "answer_words"}}, "examples": {rule:
  // [...]}}.
  nlohmann::ordered_json ToJson() const;
  std::string ToMarkdown() const;
  uint64_t kept() const;
  uint64_t rejected() const;

 private:
  using Counts = std::array<uint64_t, kNumRules>;
  struct OfType {
    uint64_t kept = 0;
    Counts cut{}, rejected{};
    Distribution turns, question_words, answer_words;
  };
  struct Example {
    std::string id, detail;
  };

  nlohmann::ordered_json run_;
  std::array<OfType, kResponseTypes.size()> types_;
  std::map<Rule, std::vector<Example>> examples_;
  uint64_t image_first_ = 0;
};

}  // namespace llava
