#pragma once

// The paper's choice of image-text pairs: every thing that captions name often enough, but none too
// often.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>
#include <vector>

namespace llava {

// Captions by their phrases. Memory: four bytes for each phrase of a caption, and each unique
// phrase once. One thread.
class PhraseIndex {
 public:
  PhraseIndex() = default;
  PhraseIndex(PhraseIndex&&) = default;  // a copy would point into the original
  PhraseIndex& operator=(PhraseIndex&&) = default;

  // The next caption, by number from 0; a phrase that comes twice counts once.
  void Add(const std::vector<std::string>& phrases);

  struct Rules {
    uint64_t min_frequency = 3;  // captions that a phrase must be in to count
    uint64_t cap = 100;          // captions that a more frequent phrase adds, drawn by chance
    uint64_t seed = 1;
  };
  // From the rarest phrase to the most frequent one (equal ones by the alphabet), each adds its
  // captions to the pool. Numbers of the pool's captions, rising.
  std::vector<uint32_t> Choose(const Rules& rules) const;

  // Of all captions, or of the chosen ones: {"captions", "without_phrase", "phrases" (unique),
  // "frequent_phrases" (at least min_frequency), "phrases_over_cap", "mentions",
  // "frequency" (how many phrases are in 1, 2, 3-9, 10-99, 100-999, 1000 and more captions),
  // "most_frequent" (20)}.
  nlohmann::ordered_json Statistics(const Rules& rules) const;
  nlohmann::ordered_json Statistics(const Rules& rules, const std::vector<uint32_t>& chosen) const;

 private:
  nlohmann::ordered_json Tell(const Rules& rules, uint64_t captions, uint64_t without,
                              const std::vector<uint32_t>& frequencies) const;

  std::unordered_map<std::string, uint32_t> numbers_;  // of phrases
  std::vector<const std::string*> phrases_;            // their texts, in numbers_
  std::vector<std::vector<uint32_t>> captions_;        // of each phrase, rising
  uint64_t num_captions_ = 0, without_phrase_ = 0;
};

}  // namespace llava
