#pragma once

// Whose turn it is on a device that the workers of several versions share.

#include <chrono>
#include <cstdint>
#include <deque>
#include <utility>

#include "server/runtime/mutex.h"

namespace llava {

// One computes at a time. Steps of answers take turns in the order of asking, so versions alternate
// step by step. Work in the background (warm-up, self-test, prompts computed ahead) comes in short
// pieces: as fast as it goes while no answers are in the making, else one piece whenever answers
// had the device four times as long as the piece before; so answers keep most of it, and a new
// version gets ready however busy the device is. Thread-safe.
class DeviceTurn {
 public:
  using Clock = std::chrono::steady_clock;

  // The device is the holder's until this goes.
  class [[nodiscard]] Held {
   public:
    Held(Held&& other) noexcept
        : turn_(std::exchange(other.turn_, nullptr)), number_(other.number_) {}
    Held& operator=(Held&&) = delete;
    ~Held() {
      if (turn_) turn_->Leave(number_);
    }

   private:
    friend class DeviceTurn;
    Held(DeviceTurn* turn, uint64_t number) : turn_(turn), number_(number) {}
    DeviceTurn* turn_;
    uint64_t number_;
  };

  // Both wait for the turn. Not from within one.
  Held ForAnswers();
  Held InBackground();

  // Takes the turn from who holds it and hangs.
  void TakeBack();

  // One worker more, or less, has answers in the making.
  void Busy(bool more);
  int busy() const;  // workers
  // So many ask for the turn and have not got it.
  size_t waiting() const;

 private:
  // Pieces in the background leave answers so many times as long as they took.
  static constexpr int kLeftToAnswers = 4;

  bool BackgroundIsDue() const LLAVA_REQUIRES(mutex_);
  Held Hold() LLAVA_REQUIRES(mutex_);
  void Leave(uint64_t number);

  mutable Mutex mutex_;
  CondVar changed_;
  bool held_ LLAVA_GUARDED_BY(mutex_) = false;
  bool background_held_ LLAVA_GUARDED_BY(mutex_) = false;
  int busy_ LLAVA_GUARDED_BY(mutex_) = 0;
  uint64_t number_ LLAVA_GUARDED_BY(mutex_) = 0;  // of the turn that is held
  uint64_t next_ticket_ LLAVA_GUARDED_BY(mutex_) = 0;
  std::deque<uint64_t> answers_ LLAVA_GUARDED_BY(mutex_);     // tickets that wait
  std::deque<uint64_t> background_ LLAVA_GUARDED_BY(mutex_);  // likewise
  Clock::time_point begun_ LLAVA_GUARDED_BY(mutex_);          // the turn that is held
  Clock::time_point background_from_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
