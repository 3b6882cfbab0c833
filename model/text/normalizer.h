#pragma once

// Brings a text into the form in which the pieces of a SentencePiece model are written: character
// rules (NFKC and others, compiled into the model file), white space as "▁", dummy prefix.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/text/model_proto.h"
#include "model/text/trie.h"

namespace llava {

inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, stands for a space

// Longest-match replacement rules: a darts-clone double array followed by NUL-ended texts.
// Const after construction, thread-safe.
class CharsMap {
 public:
  // Throws std::runtime_error if `blob` is not such a map.
  explicit CharsMap(std::string_view blob);

  struct Rule {
    size_t length = 0;             // bytes replaced, 0: no rule fits
    std::string_view replacement;  // owned by the map
  };
  // The rule with the longest left side that `text` begins with. Throws std::runtime_error if the
  // map proves to be damaged.
  Rule Find(std::string_view text) const;

 private:
  std::vector<uint32_t> units_;
  std::string texts_;
};

struct NormalizedText {
  std::string text;
  // For every byte of `text` and for its end: where it comes from in the source.
  std::vector<size_t> source;
};

// Const after construction, thread-safe.
class Normalizer {
 public:
  explicit Normalizer(const ModelProto& model);

  // `atomic`: texts that no rule may change (user-defined pieces). Broken UTF-8 becomes U+FFFD,
  // byte by byte.
  NormalizedText Normalize(std::string_view text, bool dummy_prefix, const Trie& atomic) const;

 private:
  struct Step {
    std::string_view text;
    size_t consumed;
  };
  Step NextStep(std::string_view text, const Trie& atomic) const;

  bool remove_extra_whitespaces_;
  std::string_view space_;     // how a space is written
  std::vector<CharsMap> map_;  // none or one
};

}  // namespace llava
