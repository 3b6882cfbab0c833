#include "server/gateway/transfer_memory.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace llava {

TransferMemory::TransferMemory(uint64_t limit, Metrics& metrics)
    : limit_(limit),
      gauge_(metrics.Gauge("llava_gateway_transfer_bytes",
                           "Bytes of pictures on their way to the vision services.")) {}

uint64_t TransferMemory::Enter(QueuePlace place, uint64_t bytes, Ready ready) {
  uint64_t ticket = 0;
  place.cost = static_cast<double>(std::max<uint64_t>(bytes, 1));
  {
    MutexLock lock(mutex_);
    ticket = next_ticket_++;
    queue_.Push(place, {ticket, bytes, std::move(ready)});
  }
  Dispatch();
  return ticket;
}

bool TransferMemory::Cancel(uint64_t ticket) {
  std::vector<Waiting> gone;  // destroyed without the lock
  {
    MutexLock lock(mutex_);
    gone = queue_.RemoveIf([ticket](const Waiting& each) { return each.ticket == ticket; });
  }
  if (gone.empty()) return false;
  Dispatch();  // it may have been large, and in front
  return true;
}

void TransferMemory::Dispatch() {
  while (true) {
    std::optional<Waiting> next;
    {
      MutexLock lock(mutex_);
      const Waiting* front = queue_.Front();
      if (front == nullptr || (used_ > 0 && front->bytes > limit_ - std::min(used_, limit_))) {
        return;
      }
      next = queue_.PopFront();
      used_ += next->bytes;
      gauge_.Set(static_cast<double>(used_));
    }
    next->ready(std::shared_ptr<Share>(new Share(*this, next->bytes)));
  }
}

void TransferMemory::Release(uint64_t bytes) {
  {
    MutexLock lock(mutex_);
    used_ -= bytes;
    gauge_.Set(static_cast<double>(used_));
  }
  Dispatch();
}

void TransferMemory::Share::Shrink(uint64_t bytes) {
  if (bytes >= bytes_) return;
  const uint64_t less = bytes_ - bytes;
  bytes_ = bytes;
  memory_.Release(less);
}

}  // namespace llava
