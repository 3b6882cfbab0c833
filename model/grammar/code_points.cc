#include "model/grammar/code_points.h"

#include <algorithm>
#include <array>
#include <map>

namespace llava::grammar {
namespace {

constexpr char32_t kLast = 0x10FFFF, kFirstSurrogate = 0xD800, kLastSurrogate = 0xDFFF;
// The last code point of so many bytes.
constexpr std::array<char32_t, 4> kLastOfSize = {0x7F, 0x7FF, 0xFFFF, kLast};

int Encode(char32_t c, std::array<uint8_t, 4>& bytes) {
  int size = 1;
  while (c > kLastOfSize[static_cast<size_t>(size - 1)]) ++size;
  for (int i = size - 1; i > 0; --i, c >>= 6) {
    bytes[static_cast<size_t>(i)] = static_cast<uint8_t>(0x80 | (c & 0x3F));
  }
  constexpr std::array<uint8_t, 4> kLead = {0, 0xC0, 0xE0, 0xF0};
  bytes[0] = static_cast<uint8_t>(kLead[static_cast<size_t>(size - 1)] | c);
  return size;
}

// Edges for one range; states behind equal beginnings are shared.
class Encoder {
 public:
  Encoder(AutomatonBuilder& builder, int32_t to) : builder_(builder), to_(to) {}

  void Add(int32_t from, char32_t low, char32_t high) {
    for (const char32_t last : kLastOfSize) {
      if (low > high) return;
      if (low <= last) {
        std::array<uint8_t, 4> a{}, b{};
        const int size = Encode(low, a);
        Encode(std::min(high, last), b);
        AddBytes(from, a.data(), b.data(), size);
        low = last + 1;
      }
    }
  }

 private:
  // Texts of `size` bytes from `low` to `high`, whose bytes behind the first are 80 to BF.
  void AddBytes(int32_t from, const uint8_t* low, const uint8_t* high, int size) {
    if (size == 1) return builder_.AddBytes(from, low[0], high[0], to_);
    constexpr std::array<uint8_t, 3> kLeast = {0x80, 0x80, 0x80}, kMost = {0xBF, 0xBF, 0xBF};
    if (low[0] == high[0]) {
      return AddBytes(Behind(from, low[0]), low + 1, high + 1, size - 1);
    }
    const auto all = [size](const uint8_t* bytes, uint8_t value) {
      return std::all_of(bytes + 1, bytes + size, [value](uint8_t byte) { return byte == value; });
    };
    int first = low[0], last = high[0];
    if (!all(low, 0x80)) {
      AddBytes(Behind(from, low[0]), low + 1, kMost.data(), size - 1);
      ++first;
    }
    if (!all(high, 0xBF)) {
      AddBytes(Behind(from, high[0]), kLeast.data(), high + 1, size - 1);
      --last;
    }
    if (first > last) return;
    builder_.AddBytes(from, static_cast<uint8_t>(first), static_cast<uint8_t>(last),
                      Rest(size - 1));
  }

  int32_t Behind(int32_t from, uint8_t byte) {
    const auto [entry, is_new] = behind_.try_emplace({from, byte}, 0);
    if (is_new) {
      entry->second = builder_.AddState();
      builder_.AddBytes(from, byte, byte, entry->second);
    }
    return entry->second;
  }

  // A state that reads so many bytes from 80 to BF.
  int32_t Rest(int size) {
    int32_t& state = rest_[static_cast<size_t>(size)];
    if (state < 0) {
      state = builder_.AddState();
      builder_.AddBytes(state, 0x80, 0xBF, size == 1 ? to_ : Rest(size - 1));
    }
    return state;
  }

  AutomatonBuilder& builder_;
  const int32_t to_;
  std::map<std::pair<int32_t, uint8_t>, int32_t> behind_;
  std::array<int32_t, 4> rest_ = {-1, -1, -1, -1};
};

}  // namespace

CodePoints Normalized(CodePoints set) {
  CodePoints cut;
  for (auto [low, high] : set) {
    high = std::min(high, kLast);
    if (low < kFirstSurrogate && high >= kFirstSurrogate) {
      cut.emplace_back(low, kFirstSurrogate - 1);
      low = kLastSurrogate + 1;
    }
    if (low >= kFirstSurrogate && low <= kLastSurrogate) low = kLastSurrogate + 1;
    if (high >= kFirstSurrogate && high <= kLastSurrogate) high = kFirstSurrogate - 1;
    if (low <= high) cut.emplace_back(low, high);
  }
  std::sort(cut.begin(), cut.end());
  CodePoints result;
  for (const auto& range : cut) {
    if (!result.empty() && range.first <= result.back().second + 1) {
      result.back().second = std::max(result.back().second, range.second);
    } else {
      result.push_back(range);
    }
  }
  return result;
}

CodePoints Complement(const CodePoints& set) {
  CodePoints result;
  char32_t next = 0;
  for (const auto& [low, high] : Normalized(set)) {
    if (next < low) result.emplace_back(next, low - 1);
    next = high + 1;
  }
  if (next <= kLast) result.emplace_back(next, kLast);
  return Normalized(std::move(result));
}

void AddCodePoints(AutomatonBuilder& builder, int32_t from, const CodePoints& set, int32_t to) {
  Encoder encoder(builder, to);
  for (const auto& [low, high] : Normalized(set)) encoder.Add(from, low, high);
}

}  // namespace llava::grammar
