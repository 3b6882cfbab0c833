#pragma once

// A stream of a device for each thread.

#include <map>
#include <mutex>
#include <vector>

#include <c10/core/Device.h>

namespace llava::ops {

// The calling thread's stream of `device`, no other thread's as long as this one lives: one that a
// thread before has left, or what `make` (its type names the streams that are lent to each other)
// returns or throws. Never destroyed: LibTorch keeps a work space of cuBLAS for every stream that
// it meets. Thread-safe.
template <class Stream, class Make>
Stream ThreadStream(c10::DeviceIndex device, const Make& make) {
  struct Left {
    std::mutex mutex;
    std::map<c10::DeviceIndex, std::vector<Stream>> streams;
  };
  static Left& left = *new Left;  // threads may end later than main
  struct Taken {
    std::map<c10::DeviceIndex, Stream> streams;
    ~Taken() {
      const std::lock_guard lock(left.mutex);
      for (const auto& [device, stream] : streams) left.streams[device].push_back(stream);
    }
  };
  static thread_local Taken taken;
  if (const auto found = taken.streams.find(device); found != taken.streams.end()) {
    return found->second;
  }
  {
    const std::lock_guard lock(left.mutex);
    std::vector<Stream>& free = left.streams[device];
    if (!free.empty()) {
      const auto own = taken.streams.emplace(device, free.back()).first;
      free.pop_back();
      return own->second;
    }
  }
  return taken.streams.emplace(device, make()).first->second;
}

}  // namespace llava::ops
