#pragma once

// An automaton at work: where it may be after some bytes, as numbered sets that are made when they
// are first met and remembered, so that most steps are a look into a table. Of more than
// kMostPlaces places the first are kept: each of them can reach the end, so what they allow is
// right.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "model/grammar/automaton.h"

namespace llava::grammar {

// One thread.
class Configurations {
 public:
  // The set from which nothing leads anywhere.
  static constexpr int32_t kDead = 0;
  explicit Configurations(std::shared_ptr<const Automaton> automaton);

  int32_t initial() const { return initial_; }
  int32_t Step(int32_t set, uint8_t byte) {
    const int32_t next = tables_[TableIndex(set, automaton_->class_of(byte))];
    return next != kUnknown ? next : Make(set, automaton_->class_of(byte));
  }
  // The text may end here.
  bool complete(int32_t set) const { return sets_[static_cast<size_t>(set)].complete; }
  // Of local sets: it may have come to the end of what is known.
  bool escaped(int32_t set) const { return sets_[static_cast<size_t>(set)].escaped; }
  // Some place has a next byte.
  bool alive(int32_t set) const { return !sets_[static_cast<size_t>(set)].places.empty(); }
  size_t num_places(int32_t set) const { return sets_[static_cast<size_t>(set)].places.size(); }
  // What a step from it looks at: its places and the bytes that they read. The same in every
  // process.
  size_t cost(int32_t set) const { return sets_[static_cast<size_t>(set)].cost; }
  // States that were looked at to make it, at most kMostSeen; there were more if it is that.
  size_t num_seen(int32_t set) const { return sets_[static_cast<size_t>(set)].seen; }
  // Levels of arrays and objects around it, at most.
  int depth(int32_t set) const;

  // The same places as if nothing were known of what all of them have around them: what they allow
  // until the first escape is the same for all sets that have this local one.
  int32_t Local(int32_t set);

  // A set of another object for the same automaton.
  int32_t Import(const Configurations& other, int32_t set);

  // All sets and their tables, roughly.
  size_t bytes() const { return bytes_; }
  // Those that came from other objects: they are needed, whatever is forgotten.
  size_t imported_bytes() const { return imported_bytes_; }
  // States and edges that all steps have looked at so far.
  uint64_t looked_at() const { return looked_at_; }

 private:
  // A state, and the calls around it.
  struct Place {
    int32_t state, frame;
    bool operator==(const Place&) const = default;
  };
  // One call: where to go on, and the calls around that.
  struct Frame {
    int32_t back, parent;
    int32_t size;   // calls
    int16_t depth;  // arrays and objects
  };
  struct Set {
    std::vector<Place> places;  // in the order of the automaton's edges: the same in every process
    bool complete = false, escaped = false;
    int32_t local = -1;
    size_t seen = 0, cost = 1;
  };
  // While a set is made.
  struct Draft {
    Set set;
    std::unordered_set<uint64_t> seen;
  };
  static constexpr int32_t kUnknown = -1;
  // Outermost frames: of the whole text, and of what is not known.
  static constexpr int32_t kOutside = 0, kUnknownOutside = 1;

  size_t TableIndex(int32_t set, int byte_class) const {
    return static_cast<size_t>(set) * static_cast<size_t>(automaton_->num_classes()) +
           static_cast<size_t>(byte_class);
  }
  int32_t Make(int32_t set, int byte_class);
  // Adds what can be reached from the place without a byte.
  void Close(Place place, Draft& draft);
  int32_t PushFrame(int32_t back, int32_t parent, bool nests);
  // `frame` with the calls inside of `base` only, around which nothing is known.
  int32_t MoveFrame(int32_t frame, int32_t base);
  int32_t CommonFrame(const Set& set) const;
  int32_t ImportFrame(const Configurations& other, int32_t frame);
  int32_t Intern(Set set);

  const std::shared_ptr<const Automaton> automaton_;
  std::vector<Frame> frames_;
  std::map<std::pair<int32_t, int32_t>, int32_t> frame_ids_[2];  // by back and parent; nests
  std::vector<Set> sets_;
  std::unordered_multimap<size_t, int32_t> set_ids_;  // by hash
  std::vector<int32_t> tables_;
  int32_t initial_ = kDead;
  size_t bytes_ = 0, imported_bytes_ = 0;
  uint64_t looked_at_ = 0;
};

}  // namespace llava::grammar
