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
// its tenant may start it. What is removed counts for nothing: the tenant's other items move up.
// One thread (or the caller's lock); no clock.
template <typename T>
class FairQueue {
 public:
  void Push(const QueuePlace& place, T item) {
    Tenant& tenant = tenants_[place.tenant];
    const double start = std::max(virtual_time_, tenant.finish);
    const double length = place.cost / std::max<uint32_t>(place.weight, 1);
    tenant.finish = start + length;
    ++tenant.waiting;
    items_.emplace(Key{-static_cast<int64_t>(place.priority), start, next_number_++},
                   Waiting{place.tenant, virtual_time_, length, std::move(item)});
  }

  // The item whose turn it is; null when empty.
  const T* Front() const { return items_.empty() ? nullptr : &items_.begin()->second.item; }

  // Calls `see` with every item, in order of turn.
  template <typename See>
  void ForEach(const See& see) const {
    for (const auto& [key, waiting] : items_) see(waiting.item);
  }

  std::optional<T> PopFront() {
    return PopFirst([](const T&) { return true; });
  }

  // Takes the first item, in order of turn, for which `wanted` is true.
  template <typename Wanted>
  std::optional<T> PopFirst(const Wanted& wanted) {
    for (auto it = items_.begin(); it != items_.end(); ++it) {
      if (wanted(it->second.item)) return Take(it);
    }
    return std::nullopt;
  }

  // Takes out every item for which `gone` is true; it will not be worked on.
  template <typename Gone>
  std::vector<T> RemoveIf(const Gone& gone) {
    std::vector<T> removed;
    std::map<std::string, std::vector<typename Items::iterator>> left;  // of their tenants
    for (auto it = items_.begin(); it != items_.end();) {
      const auto next = std::next(it);
      if (gone(it->second.item)) {
        left[it->second.tenant];
        removed.push_back(Remove(it));
      }
      it = next;
    }
    for (auto it = items_.begin(); !left.empty() && it != items_.end(); ++it) {
      const auto found = left.find(it->second.tenant);
      if (found != left.end()) found->second.push_back(it);
    }
    for (auto& [tenant, items] : left) MoveUp(tenants_[tenant], items);
    ForgetIdleTenants();
    return removed;
  }

  size_t size() const { return items_.size(); }
  bool empty() const { return items_.empty(); }
  size_t tenants() const { return tenants_.size(); }  // remembered

  static constexpr size_t kMaxIdleTenants = 1024;  // remembered without having work here

 private:
  using Key = std::tuple<int64_t, double, uint64_t>;  // negative priority, start tag, arrival
  struct Waiting {
    std::string tenant;
    double arrived;  // virtual time
    double length;   // likewise: what it takes of the tenant's share
    T item;
  };
  struct Tenant {
    double finish = 0;   // virtual time at which its last item ends
    double taken = 0;    // at which those would that were taken, without the others
    size_t waiting = 0;  // items
  };
  using Items = std::map<Key, Waiting>;

  T Take(typename Items::iterator it) {
    virtual_time_ = std::max(virtual_time_, std::get<1>(it->first));
    Tenant& tenant = tenants_[it->second.tenant];
    tenant.taken = std::max(tenant.taken, it->second.arrived) + it->second.length;
    T item = Remove(it);
    ForgetIdleTenants();
    return item;
  }

  T Remove(typename Items::iterator it) {
    --tenants_[it->second.tenant].waiting;
    T item = std::move(it->second.item);
    items_.erase(it);
    return item;
  }

  // Tags the tenant's items anew, as if what was removed had never come; none gets later.
  void MoveUp(Tenant& tenant, std::vector<typename Items::iterator>& items) {
    const auto arrival = [](const auto& it) { return std::get<2>(it->first); };
    std::sort(items.begin(), items.end(),
              [&](const auto& a, const auto& b) { return arrival(a) < arrival(b); });
    double finish = tenant.taken;
    for (const auto& it : items) {
      const double start = std::max(it->second.arrived, finish);
      finish = start + it->second.length;
      auto node = items_.extract(it);
      std::get<1>(node.key()) = std::min(std::get<1>(node.key()), start);
      items_.insert(std::move(node));
    }
    tenant.finish = std::min(tenant.finish, finish);
  }

  // A tenant whose work lies behind the virtual time is like one that never was. Where tenants come
  // and go while the time stands still, the idle ones are forgotten all the same: a name costs
  // nothing to make up.
  void ForgetIdleTenants() {
    if (items_.empty()) {
      tenants_.clear();
      virtual_time_ = 0;
    } else if (tenants_.size() > kMaxIdleTenants + items_.size()) {
      std::erase_if(tenants_, [](const auto& entry) { return entry.second.waiting == 0; });
    }
  }

  Items items_;
  std::map<std::string, Tenant> tenants_;
  double virtual_time_ = 0;
  uint64_t next_number_ = 0;
};

}  // namespace llava
