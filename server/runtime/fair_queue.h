#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace llava {

// Where an item stands in a FairQueue.
struct QueuePlace {
  std::string tenant = {};  // empty: the tenant of those who name none
  uint32_t weight = 1;      // 0 counts as 1
  int32_t priority = 0;
  double cost = 1;  // work the item asks for, in any unit
};

// Who waits for whom: higher priority first; within one priority tenants share by weight, however
// many items each of them has waiting; within one tenant first come, first served.
//
// Start-time fair queueing (Goyal et al. 1996): an item is tagged with the virtual time at which
// its tenant may start it. One thread (or the caller's lock); no clock.
template <typename T>
class FairQueue {
 public:
  void Push(const QueuePlace& place, T item) {
    const double start = std::max(virtual_time_, FinishOf(place.tenant));
    finish_[place.tenant] = start + place.cost / std::max<uint32_t>(place.weight, 1);
    items_.emplace(Key{-static_cast<int64_t>(place.priority), start, next_number_++},
                   std::move(item));
  }

  // The item whose turn it is; null when empty.
  const T* Front() const { return items_.empty() ? nullptr : &items_.begin()->second; }

  std::optional<T> PopFront() {
    return PopFirst([](const T&) { return true; });
  }

  // Takes the first item, in order of turn, for which `wanted` is true.
  template <typename Wanted>
  std::optional<T> PopFirst(const Wanted& wanted) {
    for (auto it = items_.begin(); it != items_.end(); ++it) {
      if (wanted(it->second)) return Take(it);
    }
    return std::nullopt;
  }

  // Takes out every item for which `gone` is true.
  template <typename Gone>
  std::vector<T> RemoveIf(const Gone& gone) {
    std::vector<T> removed;
    for (auto it = items_.begin(); it != items_.end();) {
      const auto next = std::next(it);
      if (gone(it->second)) {
        removed.push_back(std::move(it->second));
        items_.erase(it);
      }
      it = next;
    }
    ForgetIdleTenants();
    return removed;
  }

  size_t size() const { return items_.size(); }
  bool empty() const { return items_.empty(); }

 private:
  using Key = std::tuple<int64_t, double, uint64_t>;  // negative priority, start tag, arrival

  double FinishOf(const std::string& tenant) const {
    const auto found = finish_.find(tenant);
    return found == finish_.end() ? 0 : found->second;
  }

  T Take(typename std::map<Key, T>::iterator it) {
    virtual_time_ = std::max(virtual_time_, std::get<1>(it->first));
    T item = std::move(it->second);
    items_.erase(it);
    ForgetIdleTenants();
    return item;
  }

  // A tenant whose work lies behind the virtual time is like one that never was.
  void ForgetIdleTenants() {
    if (items_.empty()) {
      finish_.clear();
      virtual_time_ = 0;
    } else if (finish_.size() > kMaxTenants) {
      std::erase_if(finish_, [this](const auto& entry) { return entry.second <= virtual_time_; });
    }
  }

  static constexpr size_t kMaxTenants = 1024;  // remembered without having work here

  std::map<Key, T> items_;
  std::map<std::string, double> finish_;  // virtual time at which a tenant's last item ends
  double virtual_time_ = 0;
  uint64_t next_number_ = 0;
};

}  // namespace llava
