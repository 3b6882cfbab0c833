#pragma once

// What a text may consist of, byte by byte: a pushdown automaton made of rules, each a small
// nondeterministic automaton that may call others (and itself), as procedures do.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace llava::grammar {

// Why a constraint cannot be: what is wrong or not supported, where, and what would do.
struct GrammarError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// It takes more than kMostParts.
struct TooLarge : GrammarError {
  using GrammarError::GrammarError;
};
// No text fits.
struct NoText : GrammarError {
  using GrammarError::GrammarError;
};

// No text has more arrays and objects within each other.
inline constexpr int kMostNesting = 64;
// States and edges of an automaton together.
inline constexpr size_t kMostParts = 200'000;
// Places where an automaton may be at a time.
inline constexpr size_t kMostPlaces = 512;
// States that are looked at to find them: no more can be reached from one without a byte.
inline constexpr size_t kMostSeen = 8 * kMostPlaces;

// Const, thread-safe. Every state can reach the end of its rule, and no rule calls itself before it
// has read a byte.
class Automaton {
 public:
  struct ByteEdge {
    uint8_t low, high;  // both included
    int32_t target;
  };
  struct CallEdge {
    int32_t rule;
    int32_t back;  // the state behind the call
  };
  struct Rule {
    int32_t start;
    bool nests;  // an array or object: begins with [ or {
  };

  int32_t start() const { return rules_[root_].start; }
  const Rule& rule(int32_t rule) const { return rules_[rule]; }
  std::span<const ByteEdge> bytes(int32_t state) const { return Of(bytes_, states_[state].bytes); }
  std::span<const int32_t> empties(int32_t state) const {
    return Of(empties_, states_[state].empties);
  }
  std::span<const CallEdge> calls(int32_t state) const { return Of(calls_, states_[state].calls); }
  // The end of its rule.
  bool final(int32_t state) const { return states_[state].final; }
  // Levels of nesting that the way from here to the end of the rule takes at least.
  int height(int32_t state) const { return states_[state].height; }
  int largest_height() const { return largest_height_; }

  // Bytes that no state tells apart have a class; the space has one of its own.
  int num_classes() const { return static_cast<int>(class_bytes_.size()); }
  int class_of(uint8_t byte) const { return classes_[byte]; }
  uint8_t byte_of(int byte_class) const { return class_bytes_[static_cast<size_t>(byte_class)]; }

 private:
  friend class AutomatonBuilder;
  struct Range {
    uint32_t begin = 0, end = 0;
  };
  struct State {
    Range bytes, empties, calls;
    int16_t height = 0;
    bool final = false;
  };
  template <typename Edge>
  static std::span<const Edge> Of(const std::vector<Edge>& edges, Range range) {
    return std::span(edges).subspan(range.begin, range.end - range.begin);
  }

  int32_t root_ = 0;
  std::vector<Rule> rules_;
  std::vector<State> states_;
  std::vector<ByteEdge> bytes_;
  std::vector<int32_t> empties_;
  std::vector<CallEdge> calls_;
  int largest_height_ = 0;
  uint8_t classes_[256] = {};
  std::vector<uint8_t> class_bytes_;
};

// Puts one together. Throws GrammarError where it would have more than kMostParts.
class AutomatonBuilder {
 public:
  int32_t AddState();
  // A rule whose start has no edges yet. No rule but the root may match the empty text.
  int32_t AddRule(bool nests = false);
  int32_t start(int32_t rule) const { return rules_[static_cast<size_t>(rule)].start; }

  void AddBytes(int32_t from, uint8_t low, uint8_t high, int32_t to);
  void AddByte(int32_t from, char byte, int32_t to) {
    AddBytes(from, static_cast<uint8_t>(byte), static_cast<uint8_t>(byte), to);
  }
  void AddEmpty(int32_t from, int32_t to);
  void AddCall(int32_t from, int32_t rule, int32_t to);
  void SetFinal(int32_t state) { states_[static_cast<size_t>(state)].final = true; }
  // New states behind `from` that read the text; the last one.
  int32_t AddText(int32_t from, std::string_view text);
  // Reads exactly the text, between two states.
  void AddText(int32_t from, std::string_view text, int32_t to);

  // What `from` may do at once, from `to`, except to read this byte first. Calls from there must
  // not begin with it.
  void AddBeginningWithout(char byte, int32_t from, int32_t to);

  // Throws GrammarError: no text fits, none without more than kMostNesting levels, a rule calls
  // itself at its beginning, or from a state there are more than kMostPlaces ways to go on or
  // kMostSeen states to be looked at for them.
  std::shared_ptr<const Automaton> Build(int32_t root) const;

 private:
  struct State {
    std::vector<Automaton::ByteEdge> bytes;
    std::vector<int32_t> empties;
    std::vector<Automaton::CallEdge> calls;
    bool final = false;
  };
  void Count();
  // Of each state; kNever where the end cannot be reached.
  std::vector<int> Heights() const;
  // That no rule calls itself at its beginning and no state has too many ways to go on.
  void CheckBeginnings() const;
  // What can be reached from a state without a byte.
  struct Beginning {
    size_t places = 0;  // that have bytes to read
    size_t states = 0;
    bool is_allowed() const { return places <= kMostPlaces && states <= kMostSeen; }
  };
  // Each state once for each way of calls to it, as far as `work`, which counts down, allows.
  Beginning BeginningOf(int32_t state, size_t& work) const;

  static constexpr int kNever = kMostNesting + 1;

  std::vector<Automaton::Rule> rules_;
  std::vector<State> states_;
  size_t parts_ = 0;
};

}  // namespace llava::grammar
