#include "model/grammar/configurations.h"

#include <algorithm>

namespace llava::grammar {
namespace {

uint64_t KeyOf(int32_t state, int32_t frame) {
  return (uint64_t{static_cast<uint32_t>(state)} << 32) | static_cast<uint32_t>(frame);
}

size_t Mix(size_t hash, size_t value) {
  return (hash ^ (value + 0x9E3779B97F4A7C15u + (hash << 6) + (hash >> 2))) * 0xFF51AFD7ED558CCDu;
}

}  // namespace

Configurations::Configurations(std::shared_ptr<const Automaton> automaton)
    : automaton_(std::move(automaton)) {
  frames_ = {{-1, -1, 0, 0}, {-1, -1, 0, 0}};
  Intern({});  // kDead
  Draft draft;
  Close({automaton_->start(), kOutside}, draft);
  initial_ = Intern(std::move(draft.set));
}

int Configurations::depth(int32_t set) const {
  int depth = 0;
  for (const Place& place : sets_[static_cast<size_t>(set)].places) {
    depth = std::max<int>(depth, frames_[static_cast<size_t>(place.frame)].depth);
  }
  return depth;
}

int32_t Configurations::Make(int32_t set, int byte_class) {
  const uint8_t byte = automaton_->byte_of(byte_class);
  Draft draft;
  const std::vector<Place> places = sets_[static_cast<size_t>(set)].places;
  for (const Place& place : places) {
    for (const auto& edge : automaton_->bytes(place.state)) {
      if (byte < edge.low || byte > edge.high) continue;
      Close({edge.target, place.frame}, draft);
    }
  }
  draft.set.seen = draft.seen.size();
  looked_at_ += sets_[static_cast<size_t>(set)].cost + draft.set.seen;
  const int32_t next = Intern(std::move(draft.set));
  tables_[TableIndex(set, byte_class)] = next;
  return next;
}

void Configurations::Close(Place first, Draft& draft) {
  std::vector<Place> open = {first};  // depth first, so that the order is that of the edges
  while (!open.empty()) {
    const Place place = open.back();
    open.pop_back();
    const Frame frame = frames_[static_cast<size_t>(place.frame)];
    if (frame.depth + automaton_->height(place.state) > kMostNesting) continue;
    if (draft.seen.size() >= kMostSeen) return;
    if (!draft.seen.insert(KeyOf(place.state, place.frame)).second) continue;
    const size_t before = open.size();
    if (!automaton_->bytes(place.state).empty() && draft.set.places.size() < kMostPlaces) {
      draft.set.places.push_back(place);
    }
    for (const int32_t next : automaton_->empties(place.state)) open.push_back({next, place.frame});
    for (const auto& call : automaton_->calls(place.state)) {
      // What follows the call must be possible, too.
      if (frame.depth + automaton_->height(call.back) > kMostNesting) continue;
      const auto& rule = automaton_->rule(call.rule);
      open.push_back({rule.start, PushFrame(call.back, place.frame, rule.nests)});
    }
    if (automaton_->final(place.state)) {
      if (place.frame == kOutside) {
        draft.set.complete = true;
      } else if (place.frame == kUnknownOutside) {
        draft.set.escaped = true;
      } else {
        open.push_back({frame.back, frame.parent});
      }
    }
    std::reverse(open.begin() + static_cast<std::ptrdiff_t>(before), open.end());
  }
}

int32_t Configurations::PushFrame(int32_t back, int32_t parent, bool nests) {
  const auto [entry, is_new] = frame_ids_[nests ? 1 : 0].try_emplace(
      std::pair(back, parent), static_cast<int32_t>(frames_.size()));
  if (is_new) {
    const Frame around = frames_[static_cast<size_t>(parent)];
    frames_.push_back(
        {back, parent, around.size + 1, static_cast<int16_t>(around.depth + (nests ? 1 : 0))});
    bytes_ += sizeof(Frame) + 64;
  }
  return entry->second;
}

int32_t Configurations::CommonFrame(const Set& set) const {
  int32_t common = set.places.front().frame;
  const auto of = [this](int32_t frame) -> const Frame& {
    return frames_[static_cast<size_t>(frame)];
  };
  for (const Place& place : set.places) {
    int32_t other = place.frame;
    while (other != common) {
      int32_t& inner = of(other).size > of(common).size ? other : common;
      if (of(inner).parent < 0) return inner;  // two outermost ones do not come together
      inner = of(inner).parent;
    }
  }
  return common;
}

int32_t Configurations::MoveFrame(int32_t frame, int32_t base) {
  std::vector<int32_t> inner;
  for (; frame != base; frame = frames_[static_cast<size_t>(frame)].parent) inner.push_back(frame);
  int32_t moved = kUnknownOutside;
  for (; !inner.empty(); inner.pop_back()) {
    const Frame call = frames_[static_cast<size_t>(inner.back())];
    const bool nests = call.depth > frames_[static_cast<size_t>(call.parent)].depth;
    moved = PushFrame(call.back, moved, nests);
  }
  return moved;
}

int32_t Configurations::Local(int32_t number) {
  if (number == kDead) return kDead;
  if (sets_[static_cast<size_t>(number)].local >= 0)
    return sets_[static_cast<size_t>(number)].local;
  const Set set = sets_[static_cast<size_t>(number)];
  Set local;
  if (!set.places.empty()) {
    const int32_t base = CommonFrame(set);
    for (const Place& place : set.places) {
      local.places.push_back({place.state, MoveFrame(place.frame, base)});
    }
  }
  const int32_t result = Intern(std::move(local));
  sets_[static_cast<size_t>(number)].local = result;
  return result;
}

int32_t Configurations::ImportFrame(const Configurations& other, int32_t frame) {
  std::vector<int32_t> inner;
  for (; other.frames_[static_cast<size_t>(frame)].parent >= 0;
       frame = other.frames_[static_cast<size_t>(frame)].parent) {
    inner.push_back(frame);
  }
  int32_t here = frame;  // an outermost one: the same everywhere
  for (; !inner.empty(); inner.pop_back()) {
    const Frame& call = other.frames_[static_cast<size_t>(inner.back())];
    const bool nests = call.depth > other.frames_[static_cast<size_t>(call.parent)].depth;
    here = PushFrame(call.back, here, nests);
  }
  return here;
}

int32_t Configurations::Import(const Configurations& other, int32_t number) {
  Set set = other.sets_[static_cast<size_t>(number)];
  const size_t before = bytes_;
  for (Place& place : set.places) place.frame = ImportFrame(other, place.frame);
  set.local = -1;
  const int32_t here = Intern(std::move(set));
  imported_bytes_ += bytes_ - before;
  return here;
}

int32_t Configurations::Intern(Set set) {
  size_t hash = (set.complete ? 2u : 0u) + (set.escaped ? 1u : 0u);
  for (const Place& place : set.places) {
    hash = Mix(Mix(hash, static_cast<size_t>(place.state)), static_cast<size_t>(place.frame));
  }
  const auto [begin, end] = set_ids_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    Set& there = sets_[static_cast<size_t>(it->second)];
    if (there.places == set.places && there.complete == set.complete &&
        there.escaped == set.escaped) {
      there.seen = std::max(there.seen, set.seen);
      return it->second;
    }
  }
  set.cost = 1;
  for (const Place& place : set.places) set.cost += 1 + automaton_->bytes(place.state).size();
  const auto number = static_cast<int32_t>(sets_.size());
  const auto classes = static_cast<size_t>(automaton_->num_classes());
  bytes_ += sizeof(Set) + set.places.size() * sizeof(Place) + 64 + classes * sizeof(int32_t);
  // Where there is no place there is no way on.
  tables_.resize(tables_.size() + classes, set.places.empty() ? kDead : kUnknown);
  set_ids_.emplace(hash, number);
  sets_.push_back(std::move(set));
  return number;
}

}  // namespace llava::grammar
