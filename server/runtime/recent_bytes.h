#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <string>
#include <unordered_map>
#include <utility>

namespace llava {

// Values by name, in the order of their last use, and the bytes that they take together: for
// whoever keeps within a budget. Not thread-safe.
template <typename Value>
class RecentBytes {
 public:
  struct Entry {
    std::string key;
    uint64_t bytes;
    Value value;
  };

  bool contains(const std::string& key) const { return index_.contains(key); }
  // It is used now. Null: it is not there.
  Value* Find(const std::string& key) {
    const auto found = index_.find(key);
    if (found == index_.end()) return nullptr;
    entries_.splice(entries_.end(), entries_, found->second);
    return &found->second->value;
  }
  // In the place of one of this name, if there is one.
  void Put(const std::string& key, uint64_t bytes, Value value = {}) {
    Remove(key);
    bytes_ += bytes;
    index_[key] = entries_.insert(entries_.end(), Entry{key, bytes, std::move(value)});
  }
  void Remove(const std::string& key) {
    if (const auto found = index_.find(key); found != index_.end()) Erase(found->second);
  }
  // Of what there is.
  void RemoveOldest() { Erase(entries_.begin()); }
  // Asks of each, the least recently used first, whether it goes. Returns how many went.
  template <typename Goes>
  size_t RemoveIf(const Goes& goes) {
    const size_t before = size();
    for (auto it = entries_.begin(); it != entries_.end();) {
      it = goes(*it) ? Erase(it) : std::next(it);
    }
    return before - size();
  }

  const std::list<Entry>& entries() const { return entries_; }  // the least recently used first
  size_t size() const { return entries_.size(); }
  uint64_t bytes() const { return bytes_; }

 private:
  using Place = typename std::list<Entry>::iterator;
  Place Erase(Place place) {
    bytes_ -= place->bytes;
    index_.erase(place->key);
    return entries_.erase(place);
  }

  std::list<Entry> entries_;
  std::unordered_map<std::string, Place> index_;
  uint64_t bytes_ = 0;
};

}  // namespace llava
