#include "model/llava/answer.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace llava {
namespace {

bool IsContinuation(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

}  // namespace

Answer::Answer(const Tokenizer& tokenizer, StopOptions options)
    : tokenizer_(&tokenizer), options_(std::move(options)), decoder_(tokenizer) {
  for (const std::string& stop : options_.stop) {
    if (stop.empty()) throw std::invalid_argument("stop: an empty text would end every answer");
    if (IsContinuation(stop.front())) {
      throw std::invalid_argument("stop: a text begins within a UTF-8 character");
    }
    // The token that is written so has no text; whoever spells it out is found in the text.
    const int32_t id = tokenizer.IdOf(stop);
    if (id >= 0 && tokenizer.IsSpecial(id)) options_.stop_token_ids.push_back(id);
  }
  if (options_.max_new_tokens == 0) state_ = State::kLength;
}

void Answer::Resume(std::span<const int32_t> ids, uint64_t text_bytes_emitted) {
  for (const int32_t id : ids) {
    if (state_ != State::kRunning) break;
    Add(id);
  }
  const auto decoded = [&] { return ready_begin_ + ready_.size() + held_.size(); };
  // It had ended within a character, and that had been given out by Finish.
  if (text_bytes_emitted > decoded()) Take(decoder_.Flush());
  if (text_bytes_emitted > decoded()) {
    throw std::invalid_argument("continue_from: " + std::to_string(text_bytes_emitted) +
                                " bytes were emitted, but the " + std::to_string(ids.size()) +
                                " tokens have " + std::to_string(decoded()));
  }
  const std::string text = ready_ + held_;
  if (text_bytes_emitted < text.size() && IsContinuation(text[text_bytes_emitted])) {
    throw std::invalid_argument("continue_from: byte " + std::to_string(text_bytes_emitted) +
                                " is within a UTF-8 character");
  }
  text_bytes_ = text_bytes_emitted;
}

std::string Answer::Push(int32_t id) {
  if (state_ != State::kRunning) throw std::logic_error("Answer: a token after the end");
  Add(id);
  return GiveOut();
}

void Answer::Add(int32_t id) {
  const bool is_stop = (!options_.ignore_eos && id == tokenizer_->eos_id()) ||
                       std::find(options_.stop_token_ids.begin(), options_.stop_token_ids.end(),
                                 id) != options_.stop_token_ids.end();
  if (is_stop) {
    ++num_generated_;
    state_ = State::kStopped;
    return;
  }
  const std::string text = decoder_.Push(id);
  ++num_generated_;
  ids_.push_back(id);
  text_end_.push_back(kUnknown);
  decoded_bytes_ += text.size();
  if (!decoder_.pending()) {
    for (; num_known_ends_ < text_end_.size(); ++num_known_ends_) {
      text_end_[num_known_ends_] = decoded_bytes_;
    }
  }
  Take(text);
  if (state_ == State::kRunning && num_generated_ >= options_.max_new_tokens) {
    state_ = State::kLength;
  }
}

void Answer::Take(const std::string& text) {
  held_ += text;
  if (const size_t stop = FindStop(); stop != std::string::npos) {
    ready_.append(held_, 0, stop);
    held_.clear();
    state_ = State::kStopped;
    cut_ = true;
    decoder_ = StreamDecoder(*tokenizer_);  // nothing behind a stop text counts
    return;
  }
  const size_t safe = held_.size() - PossibleStop();
  ready_.append(held_, 0, safe);
  held_.erase(0, safe);
}

size_t Answer::FindStop() const {
  size_t begin = std::string::npos, end = std::string::npos;
  for (const std::string& stop : options_.stop) {
    const size_t found = held_.find(stop);
    if (found == std::string::npos) continue;
    const size_t found_end = found + stop.size();
    if (found_end < end || (found_end == end && found < begin)) {
      begin = found;
      end = found_end;
    }
  }
  return begin;
}

size_t Answer::PossibleStop() const {
  size_t longest = 0;
  for (const std::string& stop : options_.stop) {
    for (size_t size = std::min(stop.size() - 1, held_.size()); size > longest; --size) {
      if (held_.compare(held_.size() - size, size, stop, 0, size) == 0) longest = size;
    }
  }
  return longest;
}

std::string Answer::GiveOut() {
  const uint64_t end = ready_begin_ + ready_.size();
  std::string text;
  if (end > text_bytes_) {
    text = ready_.substr(text_bytes_ - ready_begin_);
    text_bytes_ = end;
  }
  ready_begin_ = end;
  ready_.clear();
  return text;
}

void Answer::Complete() {
  if (!cut_) state_ = State::kStopped;
}

std::string Answer::Finish() {
  Take(decoder_.Flush());
  ready_ += held_;
  held_.clear();
  return GiveOut();
}

std::vector<int32_t> Answer::DeliveredIds() const {
  size_t count = 0;
  while (count < num_known_ends_ && text_end_[count] <= text_bytes_) ++count;
  return {ids_.begin(), ids_.begin() + count};
}

}  // namespace llava
