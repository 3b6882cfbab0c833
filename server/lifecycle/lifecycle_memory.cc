// What versions take of the memory, and what a candidate finds.

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "server/lifecycle/lifecycle.h"

namespace llava {

// Of versions that may share their memory: each group counts as its largest member.
class Lifecycle::ByteSum {
 public:
  void Add(const Version& version, uint64_t bytes) {
    if (version.memory_group.empty()) {
      sum_ += bytes;
      return;
    }
    uint64_t& most = groups_[version.memory_group];
    sum_ += std::max(most, bytes) - most;
    most = std::max(most, bytes);
  }
  uint64_t sum() const { return sum_; }
  // Of which a version of the group takes part.
  uint64_t shared(const std::string& memory_group) const {
    const auto found = groups_.find(memory_group);
    return found == groups_.end() ? 0 : found->second;
  }

 private:
  uint64_t sum_ = 0;
  std::map<std::string, uint64_t> groups_;
};

SwapRequest Lifecycle::RequestFor(const VersionId& id, const Model& model, Time now) const {
  const Version& candidate = versions_.at(id);
  SwapRequest request;
  request.candidate = candidate.bytes;
  request.budget = options_.memory_budget;
  request.soft_budget = options_.soft_budget;
  request.forced = options_.swap_mode;
  request.in_motion = InMotion(now);
  const bool beside_allowed = !request.forced || *request.forced == SwapMode::kSideBySide;
  ByteSum staying;
  std::vector<std::pair<bool, uint64_t>> old;  // stand-ins last, older ones first
  for (const auto& [other, version] : versions_) {
    if (other == id) continue;
    const bool ready = version.state == v1::MODEL_STATE_READY;
    // One that shares its memory with the candidate need not make room.
    const bool shares = !candidate.memory_group.empty() && beside_allowed &&
                        version.memory_group == candidate.memory_group;
    if (other.name == id.name && ready && !shares && MayGo(model, other.version, id.version)) {
      old.emplace_back(Wants(other), other.version);
    } else {
      // What an exchange is about takes, or takes back, all workers in the end.
      const bool promised = !version.bytes.empty() &&
                            InExchange(models_.at(other.name), other.version) &&
                            (version.held || version.state == v1::MODEL_STATE_LOADING);
      staying.Add(version,
                  promised ? std::max(BytesOf(version), version.bytes.back()) : BytesOf(version));
    }
  }
  request.staying_bytes = staying.sum();
  const uint64_t shared = staying.shared(candidate.memory_group);
  for (uint64_t& bytes : request.candidate) bytes -= std::min(bytes, shared);
  std::sort(old.begin(), old.end());
  for (const auto& [wanted, number] : old) {
    const Version& version = versions_.at({id.name, number});
    request.old.push_back({number, version.bytes, version.workers, version.present});
  }
  return request;
}

uint64_t Lifecycle::BytesOf(const Version& version) const {
  const bool resident = version.state == v1::MODEL_STATE_READY ||
                        version.state == v1::MODEL_STATE_DRAINING || version.held ||
                        version.job == Version::Job::kLoad;
  if (!resident || version.bytes.empty()) return 0;
  int workers = version.workers;
  if (version.job == Version::Job::kSetWorkers) workers = std::max(workers, version.workers_wanted);
  if (workers <= 0) return 0;
  return version.bytes[std::min(static_cast<size_t>(workers), version.bytes.size()) - 1];
}

uint64_t Lifecycle::EstimatedBytes() const {
  ByteSum sum;
  for (const auto& [id, version] : versions_) sum.Add(version, BytesOf(version));
  return sum.sum();
}

}  // namespace llava
