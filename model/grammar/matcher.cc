#include "model/grammar/matcher.h"

#include <algorithm>
#include <utility>

namespace llava::grammar {
namespace {

// What a constraint remembers; beyond it begins anew.
constexpr size_t kMostSetBytes = 12u << 20, kMostMaskBytes = 12u << 20;
// Costs of all sets that a walk meets, and a part of it for each step from one: bounds its time
// where every token leads somewhere else. Beyond it tokens of more than one byte are not allowed.
constexpr size_t kMostWork = 32 * 1024, kStepsPaidAtOnce = 32;

}  // namespace

// One pass over the tree. With `local`, stops where sets may differ.
class Constraint::Walk {
 public:
  Walk(const Vocabulary& vocabulary, Work& work, std::span<uint64_t> mask, LocalMask* local)
      : vocabulary_(vocabulary), work_(work), mask_(mask), local_(local) {
    ++work_.walk;
  }

  // The nodes [begin, end), which stand below `set`, reached by `depth` bytes.
  void Run(size_t begin, size_t end, int32_t set, size_t depth) {
    int32_t path[256];
    path[depth] = set;
    const std::span<const Vocabulary::Node> nodes = vocabulary_.nodes();
    for (size_t i = begin; i < end;) {
      const Vocabulary::Node& node = nodes[i];
      // Those of one byte are always looked at: they are a way on.
      if (left_ <= 0 && node.depth > 1) {
        i = node.end;
        continue;
      }
      const int32_t from = path[node.depth - 1];
      left_ -= static_cast<int64_t>(work_.sets.cost(from) / kStepsPaidAtOnce);
      const int32_t next = work_.sets.Step(from, node.byte);
      if (next == Configurations::kDead) {
        i = node.end;
        continue;
      }
      Meet(next);
      for (const int32_t token : vocabulary_.tokens_at(i)) Allow(token);
      if (local_ != nullptr && work_.sets.escaped(next)) {
        if (node.end > i + 1) local_->escapes.push_back(static_cast<uint32_t>(i));
        i = node.end;
        continue;
      }
      path[node.depth] = next;
      ++i;
    }
  }

  void Allow(int32_t token) {
    const auto word = static_cast<size_t>(token) / 64;
    if (word < mask_.size()) mask_[word] |= uint64_t{1} << (static_cast<size_t>(token) % 64);
  }

  void Forbid(int32_t token) {
    const auto word = static_cast<size_t>(token) / 64;
    if (word < mask_.size()) mask_[word] &= ~(uint64_t{1} << (static_cast<size_t>(token) % 64));
  }

 private:
  void Meet(int32_t set) {
    const auto number = static_cast<size_t>(set);
    if (number >= work_.visits.size()) work_.visits.resize(2 * number + 64);
    if (std::exchange(work_.visits[number], work_.walk) == work_.walk) return;
    left_ -= static_cast<int64_t>(work_.sets.cost(set));
    if (local_ == nullptr) return;
    local_->most_places = std::max(local_->most_places, work_.sets.num_places(set));
    local_->most_seen = std::max(local_->most_seen, work_.sets.num_seen(set));
  }

  const Vocabulary& vocabulary_;
  Work& work_;
  const std::span<uint64_t> mask_;
  LocalMask* const local_;
  int64_t left_ = kMostWork;
};

Constraint::Constraint(std::shared_ptr<const Automaton> automaton,
                       std::shared_ptr<const Vocabulary> vocabulary)
    : automaton_(std::move(automaton)),
      vocabulary_(std::move(vocabulary)),
      work_(std::make_shared<Work>(automaton_)) {}

std::shared_ptr<Constraint::Work> Constraint::Current() {
  const Configurations& sets = work_->sets;
  if (sets.bytes() - sets.imported_bytes() > kMostSetBytes || work_->mask_bytes > kMostMaskBytes) {
    looked_at_before_ += sets.looked_at();
    ++times_begun_anew_;
    work_ = std::make_shared<Work>(automaton_);
  }
  return work_;
}

Constraint::Usage Constraint::usage() {
  const std::lock_guard lock(mutex_);
  const Configurations& sets = work_->sets;
  return {.bytes = sets.bytes() + work_->mask_bytes,
          .times_begun_anew = times_begun_anew_,
          .looked_at = looked_at_before_ + sets.looked_at()};
}

const Constraint::LocalMask& Constraint::MaskOf(Work& work, int32_t local) const {
  const auto [entry, is_new] = work.masks.try_emplace(local);
  LocalMask& mask = entry->second;
  if (!is_new) return mask;
  mask.tokens.resize((static_cast<size_t>(vocabulary_->size()) + 63) / 64);
  Walk(*vocabulary_, work, mask.tokens, &mask).Run(0, vocabulary_->nodes().size(), local, 0);
  work.mask_bytes += mask.tokens.size() * sizeof(uint64_t) +
                     mask.escapes.capacity() * sizeof(uint32_t) + sizeof(LocalMask) + 64;
  return mask;
}

void Constraint::FillMask(Work& work, int32_t set, bool begun, std::span<uint64_t> mask) const {
  std::fill(mask.begin(), mask.end(), 0);
  const std::span<const Vocabulary::Node> nodes = vocabulary_->nodes();
  Configurations& sets = work.sets;
  if (!begun) {
    Walk walk(*vocabulary_, work, mask, nullptr);
    for (size_t i = 0; i < nodes.size(); i = nodes[i].end) {
      if (nodes[i].byte == ' ') {
        for (const int32_t token : vocabulary_->tokens_at(i)) walk.Allow(token);
        walk.Run(i + 1, nodes[i].end, set, 1);
      } else {
        walk.Run(i, nodes[i].end, set, 0);
      }
    }
    for (const int32_t token : vocabulary_->keep_space()) walk.Forbid(token);
    return;
  }
  // Otherwise what a set allows may depend on how deep it lies.
  const bool shallow =
      sets.depth(set) + vocabulary_->most_opened() + automaton_->largest_height() <= kMostNesting;
  if (shallow) {
    const LocalMask& local = MaskOf(work, sets.Local(set));
    const size_t places = sets.num_places(set);
    if (places * local.most_places <= kMostPlaces && places * local.most_seen <= kMostSeen) {
      std::copy_n(local.tokens.begin(), std::min(mask.size(), local.tokens.size()), mask.begin());
      Walk walk(*vocabulary_, work, mask, nullptr);
      for (const uint32_t node : local.escapes) {
        const std::string_view path = vocabulary_->path(node);
        int32_t here = set;
        for (const char byte : path) here = sets.Step(here, static_cast<uint8_t>(byte));
        walk.Run(node + 1, nodes[node].end, here, path.size());
      }
      return;
    }
  }
  Walk(*vocabulary_, work, mask, nullptr).Run(0, nodes.size(), set, 0);
}

Matcher::Matcher(std::shared_ptr<Constraint> constraint) : constraint_(std::move(constraint)) {
  const std::lock_guard lock(constraint_->mutex_);
  work_ = constraint_->Current();
  set_ = work_->sets.initial();
  complete_ = work_->sets.complete(set_);
  finished_ = complete_ && !work_->sets.alive(set_);
}

Constraint::Work& Matcher::Here() {
  std::shared_ptr<Constraint::Work> current = constraint_->Current();
  if (current != work_) {
    set_ = current->sets.Import(work_->sets, set_);
    work_ = std::move(current);
  }
  return *work_;
}

bool Matcher::Advance(int32_t token) {
  if (token < 0 || token >= constraint_->vocabulary_->size()) return false;
  std::string_view bytes = constraint_->vocabulary_->bytes(token);
  if (bytes.empty()) return false;
  if (!std::exchange(begun_, true) && constraint_->vocabulary_->drops_space(token)) {
    bytes.remove_prefix(1);
  }
  const std::lock_guard lock(constraint_->mutex_);
  Configurations& sets = Here().sets;
  for (const char byte : bytes) set_ = sets.Step(set_, static_cast<uint8_t>(byte));
  complete_ = sets.complete(set_);
  finished_ = complete_ && !sets.alive(set_);
  return set_ != Configurations::kDead;
}

void Matcher::FillMask(std::span<uint64_t> mask) {
  const std::lock_guard lock(constraint_->mutex_);
  constraint_->FillMask(Here(), set_, begun_, mask);
}

}  // namespace llava::grammar
