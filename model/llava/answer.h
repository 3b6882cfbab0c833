#pragma once

// One answer in the making, apart from any model: collects tokens, turns them into text, knows when
// to stop. The services and offline evaluation use the same one.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/text/tokenizer.h"

namespace llava {

// An answer ends at the stop text that is complete first; of several that end at the same byte, at
// the longest. So it does not matter how the text falls into tokens.
struct StopOptions {
  uint32_t max_new_tokens = 512;
  // Texts that end the answer and are not part of it: whole UTF-8 characters, not empty. That of a
  // special token stands for the token, too.
  std::vector<std::string> stop = {};
  std::vector<int32_t> stop_token_ids = {};  // beside the tokenizer's eos
  bool ignore_eos = false;
};

// One thread.
class Answer {
 public:
  enum class State { kRunning, kStopped, kLength };

  // Throws std::invalid_argument if a stop text is empty or begins within a character.
  Answer(const Tokenizer& tokenizer, StopOptions options);

  // Goes on with an interrupted answer: replays its tokens; text before `text_bytes_emitted` is not
  // given out again, text behind it comes with the next Push or Finish. Called first, if at all.
  // The replay itself may end the answer: look at state(). Throws std::invalid_argument if the
  // tokens have less text than was emitted, or the emitted part ends within a character.
  void Resume(std::span<const int32_t> ids, uint64_t text_bytes_emitted);

  // Takes a sampled token and returns the text that may be shown now: whole characters, nothing
  // that could still turn out to begin a stop text.
  std::string Push(int32_t id);
  // The text is complete although nothing stopped it: the state is kStopped, unless a stop text has
  // cut it.
  void Complete();
  // A stop text has ended it, and is not part of it.
  bool cut() const { return cut_; }
  // What was held back, once no more tokens come (stop, length, cancel): call at the end, once.
  std::string Finish();

  State state() const { return state_; }
  // Of the options, and the special tokens among the stop texts.
  const std::vector<int32_t>& stop_token_ids() const { return options_.stop_token_ids; }
  // Every token pushed, stop tokens excluded.
  const std::vector<int32_t>& ids() const { return ids_; }
  // The leading ids whose text lies wholly within the text given out: what a later prompt repeats.
  // Bytes of a character that never became whole are not among them.
  std::vector<int32_t> DeliveredIds() const;
  // Tokens generated, the stop token included.
  uint32_t num_generated() const { return num_generated_; }
  // Bytes of text given out.
  uint64_t text_bytes() const { return text_bytes_; }

 private:
  // Takes decoded text; moves on to `ready_` what can no longer belong to a stop text.
  void Take(const std::string& text);
  // Begin of the stop text that is complete first in `held_`, npos if there is none.
  size_t FindStop() const;
  // Length of the longest end of `held_` that could begin a stop text.
  size_t PossibleStop() const;
  // Adds a token without giving out text.
  void Add(int32_t id);
  // Empties `ready_`, less what an earlier worker has given out.
  std::string GiveOut();

  static constexpr uint64_t kUnknown = UINT64_MAX;

  const Tokenizer* tokenizer_;
  StopOptions options_;
  StreamDecoder decoder_;
  State state_ = State::kRunning;
  bool cut_ = false;
  std::vector<int32_t> ids_;
  // Per id: bytes of decoded text after it; kUnknown while a character is unfinished.
  std::vector<uint64_t> text_end_;
  size_t num_known_ends_ = 0;   // how many of them, from the front, are known
  uint64_t decoded_bytes_ = 0;  // all decoded text, stop texts included
  std::string held_;            // decoded, may begin a stop text
  std::string ready_;           // may be given out
  uint64_t ready_begin_ = 0;    // bytes of text in front of `ready_`
  uint64_t text_bytes_ = 0;
  uint32_t num_generated_ = 0;
};

}  // namespace llava
