#pragma once

// What pictures on their way to the vision services hold in memory, all together.

#include <cstdint>
#include <functional>
#include <memory>

#include "server/runtime/fair_queue.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"

namespace llava {

// One budget in front of all transfers. Nobody is refused: who finds no room waits, the keys take
// turns. Thread-safe; outlives its shares.
class TransferMemory {
 public:
  // What one picture holds; gives it back at its end.
  class Share {
   public:
    ~Share() { memory_.Release(bytes_); }
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

    // Gives back all but `bytes`, if it is less.
    void Shrink(uint64_t bytes);

   private:
    friend class TransferMemory;
    Share(TransferMemory& memory, uint64_t bytes) : memory_(memory), bytes_(bytes) {}

    TransferMemory& memory_;
    uint64_t bytes_;
  };
  using Ready = std::function<void(std::shared_ptr<Share>)>;

  TransferMemory(uint64_t limit, Metrics& metrics);

  // `ready` runs once there is room, within this call or on the thread of whoever gives some back,
  // unless Cancel comes before. One that is larger than all there is gets in alone. The ticket is
  // for Cancel. The cost in `place` is set here.
  uint64_t Enter(QueuePlace place, uint64_t bytes, Ready ready);
  // False: `ready` runs, or ran.
  bool Cancel(uint64_t ticket);

 private:
  struct Waiting {
    uint64_t ticket;
    uint64_t bytes;
    Ready ready;
  };

  void Release(uint64_t bytes);
  void Dispatch();

  const uint64_t limit_;
  prometheus::Gauge& gauge_;

  Mutex mutex_;
  FairQueue<Waiting> queue_ LLAVA_GUARDED_BY(mutex_);
  uint64_t used_ LLAVA_GUARDED_BY(mutex_) = 0;
  uint64_t next_ticket_ LLAVA_GUARDED_BY(mutex_) = 1;
};

}  // namespace llava
