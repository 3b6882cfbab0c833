#include "model/grammar/automaton.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>

namespace llava::grammar {

void AutomatonBuilder::Count() {
  if (++parts_ <= kMostParts) return;
  throw TooLarge("takes an automaton of more than " + std::to_string(kMostParts) +
                 " states and edges; ask for less: shorter maxLength, fewer maxItems, fewer "
                 "names and values");
}

int32_t AutomatonBuilder::AddState() {
  Count();
  states_.emplace_back();
  return static_cast<int32_t>(states_.size()) - 1;
}

int32_t AutomatonBuilder::AddRule(bool nests) {
  rules_.push_back({AddState(), nests});
  return static_cast<int32_t>(rules_.size()) - 1;
}

void AutomatonBuilder::AddBytes(int32_t from, uint8_t low, uint8_t high, int32_t to) {
  Count();
  states_[static_cast<size_t>(from)].bytes.push_back({low, high, to});
}

void AutomatonBuilder::AddEmpty(int32_t from, int32_t to) {
  Count();
  states_[static_cast<size_t>(from)].empties.push_back(to);
}

void AutomatonBuilder::AddCall(int32_t from, int32_t rule, int32_t to) {
  Count();
  states_[static_cast<size_t>(from)].calls.push_back({rule, to});
}

int32_t AutomatonBuilder::AddText(int32_t from, std::string_view text) {
  for (const char byte : text) {
    const int32_t next = AddState();
    AddByte(from, byte, next);
    from = next;
  }
  return from;
}

void AutomatonBuilder::AddText(int32_t from, std::string_view text, int32_t to) {
  if (text.empty()) return AddEmpty(from, to);
  AddByte(AddText(from, text.substr(0, text.size() - 1)), text.back(), to);
}

void AutomatonBuilder::AddBeginningWithout(char byte, int32_t from, int32_t to) {
  const auto left_out = static_cast<uint8_t>(byte);
  std::vector<int32_t> open = {from};
  std::vector<bool> seen(states_.size());
  seen[static_cast<size_t>(from)] = true;
  while (!open.empty()) {
    const State state = states_[static_cast<size_t>(open.back())];
    open.pop_back();
    if (state.final) SetFinal(to);
    for (const auto& [low, high, target] : state.bytes) {
      if (low > left_out || high < left_out) {
        AddBytes(to, low, high, target);
        continue;
      }
      if (low < left_out) AddBytes(to, low, left_out - 1, target);
      if (high > left_out) AddBytes(to, left_out + 1, high, target);
    }
    for (const auto& call : state.calls) AddCall(to, call.rule, call.back);
    for (const int32_t next : state.empties) {
      if (seen[static_cast<size_t>(next)]) continue;
      seen[static_cast<size_t>(next)] = true;
      open.push_back(next);
    }
  }
}

std::vector<int> AutomatonBuilder::Heights() const {
  // Knuth's generalisation of Dijkstra's algorithm: a state's height is final when it is taken out
  // of the lowest bucket, and a call's when both its rule and what follows have theirs.
  struct Call {
    int32_t from;
    int32_t start, back;
    int nests;
  };
  std::vector<Call> calls;
  std::vector<std::vector<int32_t>> before(states_.size()), calls_of(states_.size());
  for (size_t i = 0; i < states_.size(); ++i) {
    const auto state = static_cast<int32_t>(i);
    for (const auto& edge : states_[i].bytes) {
      before[static_cast<size_t>(edge.target)].push_back(state);
    }
    for (const int32_t target : states_[i].empties) {
      before[static_cast<size_t>(target)].push_back(state);
    }
    for (const auto& call : states_[i].calls) {
      const auto& rule = rules_[static_cast<size_t>(call.rule)];
      const auto number = static_cast<int32_t>(calls.size());
      calls.push_back({state, rule.start, call.back, rule.nests ? 1 : 0});
      calls_of[static_cast<size_t>(rule.start)].push_back(number);
      calls_of[static_cast<size_t>(call.back)].push_back(number);
    }
  }
  std::vector<int> heights(states_.size(), kNever);
  std::vector<bool> done(states_.size());
  std::array<std::vector<int32_t>, kNever> buckets;
  const auto offer = [&](int32_t state, int height) {
    if (height >= heights[static_cast<size_t>(state)]) return;
    heights[static_cast<size_t>(state)] = height;
    buckets[static_cast<size_t>(height)].push_back(state);
  };
  for (size_t i = 0; i < states_.size(); ++i) {
    if (states_[i].final) offer(static_cast<int32_t>(i), 0);
  }
  for (int height = 0; height < kNever; ++height) {
    auto& bucket = buckets[static_cast<size_t>(height)];
    while (!bucket.empty()) {
      const auto state = static_cast<size_t>(bucket.back());
      bucket.pop_back();
      if (done[state]) continue;
      done[state] = true;
      for (const int32_t from : before[state]) offer(from, height);
      for (const int32_t number : calls_of[state]) {
        const Call& call = calls[static_cast<size_t>(number)];
        const auto start = static_cast<size_t>(call.start), back = static_cast<size_t>(call.back);
        if (!done[start] || !done[back]) continue;
        offer(call.from, std::max(heights[start] + call.nests, heights[back]));
      }
    }
  }
  return heights;
}

AutomatonBuilder::Beginning AutomatonBuilder::BeginningOf(int32_t first, size_t& work) const {
  Beginning beginning;
  std::map<std::pair<int32_t, size_t>, size_t> calls;  // by where they go on and the call around
  std::set<std::pair<int32_t, size_t>> seen;
  std::vector<std::pair<int32_t, size_t>> open = {{first, 0}};
  while (!open.empty() && work > 0 && beginning.is_allowed()) {
    const auto [number, call] = open.back();
    open.pop_back();
    --work;
    if (!seen.emplace(number, call).second) continue;
    const State& state = states_[static_cast<size_t>(number)];
    ++beginning.states;
    if (!state.bytes.empty()) ++beginning.places;
    for (const int32_t next : state.empties) open.emplace_back(next, call);
    for (const auto& edge : state.calls) {
      const size_t inner = calls.try_emplace({edge.back, call}, calls.size() + 1).first->second;
      open.emplace_back(start(edge.rule), inner);
    }
  }
  if (!open.empty() && beginning.is_allowed()) beginning.states = kMostSeen + 1;
  return beginning;
}

void AutomatonBuilder::CheckBeginnings() const {
  // Depth first over what can be reached without reading a byte.
  struct Visit {
    int32_t state;
    size_t next = 0;       // of its edges
    size_t calls = 0;      // on the way here
    Beginning found = {};  // from here, on whatever way
  };
  constexpr size_t kNew = SIZE_MAX, kDone = SIZE_MAX - 1;
  std::vector<size_t> at(states_.size(), kNew);  // on the path
  std::vector<Beginning> beginnings(states_.size());
  size_t work = 64 * kMostSeen;
  const auto add = [](Beginning& to, const Beginning& found) {
    to.places += found.places;
    to.states += found.states;
  };
  for (size_t root = 0; root < states_.size(); ++root) {
    if (at[root] != kNew) continue;
    std::vector<Visit> path = {{.state = static_cast<int32_t>(root)}};
    at[root] = 0;
    while (!path.empty()) {
      Visit& visit = path.back();
      const auto number = static_cast<size_t>(visit.state);
      const State& state = states_[number];
      if (visit.next == state.empties.size() + state.calls.size()) {
        add(visit.found, {.places = state.bytes.empty() ? size_t{0} : 1, .states = 1});
        // Many ways may lead to few states.
        if (!visit.found.is_allowed()) visit.found = BeginningOf(visit.state, work);
        if (!visit.found.is_allowed()) {
          throw GrammarError("leaves more than " + std::to_string(kMostPlaces) +
                             " ways to go on in one place (alternatives, optional members), or "
                             "takes more than " +
                             std::to_string(kMostSeen) + " steps without a character to find them");
        }
        beginnings[number] = visit.found;
        at[number] = kDone;
        path.pop_back();
        if (!path.empty()) add(path.back().found, beginnings[number]);
        continue;
      }
      const bool is_call = visit.next >= state.empties.size();
      const int32_t to = is_call ? start(state.calls[visit.next - state.empties.size()].rule)
                                 : state.empties[visit.next];
      ++visit.next;
      const size_t there = at[static_cast<size_t>(to)];
      const size_t calls = visit.calls + (is_call ? 1 : 0);
      if (there == kDone) {
        add(visit.found, beginnings[static_cast<size_t>(to)]);
      } else if (there == kNew) {
        at[static_cast<size_t>(to)] = path.size();
        path.push_back({.state = to, .calls = calls});
      } else if (calls > path[there].calls) {
        throw GrammarError("refers to itself with nothing in between, so it says nothing");
      }
    }
  }
}

std::shared_ptr<const Automaton> AutomatonBuilder::Build(int32_t root) const {
  CheckBeginnings();
  const std::vector<int> heights = Heights();
  const auto dead = [&](int32_t state) { return heights[static_cast<size_t>(state)] >= kNever; };
  auto automaton = std::make_shared<Automaton>();
  automaton->root_ = root;
  automaton->rules_ = rules_;
  if (dead(start(root))) {
    throw NoText("nothing can fit it: there is no such text of at most " +
                 std::to_string(kMostNesting) + " levels of arrays and objects");
  }
  std::array<bool, 257> cuts{};
  cuts[0] = cuts[' '] = cuts[' ' + 1] = true;
  for (size_t i = 0; i < states_.size(); ++i) {
    const State& from = states_[i];
    Automaton::State state;
    state.height = static_cast<int16_t>(heights[i]);
    state.final = from.final;
    if (heights[i] < kNever) {
      automaton->largest_height_ = std::max(automaton->largest_height_, heights[i]);
    }
    const auto size = [](const auto& edges) { return static_cast<uint32_t>(edges.size()); };
    state.bytes.begin = size(automaton->bytes_);
    for (const auto& edge : from.bytes) {
      if (dead(edge.target)) continue;
      automaton->bytes_.push_back(edge);
      cuts[edge.low] = cuts[edge.high + 1] = true;
    }
    state.bytes.end = size(automaton->bytes_);
    state.empties.begin = size(automaton->empties_);
    for (const int32_t target : from.empties) {
      if (!dead(target)) automaton->empties_.push_back(target);
    }
    state.empties.end = size(automaton->empties_);
    state.calls.begin = size(automaton->calls_);
    for (const auto& call : from.calls) {
      if (!dead(start(call.rule)) && !dead(call.back)) automaton->calls_.push_back(call);
    }
    state.calls.end = size(automaton->calls_);
    automaton->states_.push_back(state);
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    if (cuts[byte]) automaton->class_bytes_.push_back(static_cast<uint8_t>(byte));
    automaton->classes_[byte] = static_cast<uint8_t>(automaton->class_bytes_.size() - 1);
  }
  return automaton;
}

}  // namespace llava::grammar
