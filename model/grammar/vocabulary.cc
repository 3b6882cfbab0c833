#include "model/grammar/vocabulary.h"

#include <algorithm>
#include <bitset>
#include <utility>

namespace llava::grammar {
namespace {

// Longer ones are never allowed; nobody has any.
constexpr size_t kLongestToken = 255;

// Of UTF-8.
bool IsNeeded(int byte) { return byte <= 0xBF || (byte >= 0xC2 && byte <= 0xF4); }

}  // namespace

Vocabulary::Vocabulary(std::vector<std::string> tokens, std::vector<bool> drops_space)
    : tokens_(std::move(tokens)), drops_space_(std::move(drops_space)) {
  std::bitset<256> single;
  for (size_t id = 0; id < tokens_.size(); ++id) {
    const std::string& bytes = tokens_[id];
    if (bytes.empty() || bytes.size() > kLongestToken) continue;
    order_.push_back(static_cast<int32_t>(id));
    if (bytes[0] == ' ' && !this->drops_space(order_.back())) keep_space_.push_back(order_.back());
    if (bytes.size() == 1) single.set(static_cast<uint8_t>(bytes[0]));
    const auto opened = std::count_if(bytes.begin(), bytes.end(),
                                      [](char byte) { return byte == '[' || byte == '{'; });
    most_opened_ = std::max(most_opened_, static_cast<int>(opened));
  }
  for (int byte = 0; byte < 256 && !missing_byte_; ++byte) {
    if (IsNeeded(byte) && !single[static_cast<size_t>(byte)]) {
      missing_byte_ = static_cast<uint8_t>(byte);
    }
  }
  std::sort(order_.begin(), order_.end(), [this](int32_t a, int32_t b) {
    const std::string_view left = bytes(a), right = bytes(b);
    return left != right ? left < right : a < b;
  });
  std::vector<uint32_t> path;  // nodes of the text before
  std::string_view before;
  const auto close = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back()) {
      nodes_[path.back()].end = static_cast<uint32_t>(nodes_.size());
    }
  };
  for (size_t i = 0; i < order_.size(); ++i) {
    const std::string_view text = bytes(order_[i]);
    const auto parts = std::mismatch(before.begin(), before.end(), text.begin(), text.end());
    close(static_cast<size_t>(parts.first - before.begin()));
    while (path.size() < text.size()) {
      const auto number = static_cast<uint32_t>(nodes_.size());
      nodes_.push_back({.end = 0,
                        .tokens = static_cast<uint32_t>(i),
                        .depth = static_cast<uint8_t>(path.size() + 1),
                        .byte = static_cast<uint8_t>(text[path.size()])});
      path.push_back(number);
    }
    before = text;
  }
  close(0);
}

}  // namespace llava::grammar
