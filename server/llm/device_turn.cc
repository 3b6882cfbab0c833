#include "server/llm/device_turn.h"

namespace llava {

bool DeviceTurn::BackgroundIsDue() const { return busy_ == 0 || Clock::now() >= background_from_; }

DeviceTurn::Held DeviceTurn::ForAnswers() {
  MutexLock lock(mutex_);
  const uint64_t ticket = next_ticket_++;
  answers_.push_back(ticket);
  // A piece in the background that is due goes first: it is short, and else might never come.
  while (held_ || answers_.front() != ticket || (!background_.empty() && BackgroundIsDue())) {
    changed_.Wait(mutex_);
  }
  answers_.pop_front();
  return Hold();
}

DeviceTurn::Held DeviceTurn::InBackground() {
  MutexLock lock(mutex_);
  const uint64_t ticket = next_ticket_++;
  background_.push_back(ticket);
  while (held_ || background_.front() != ticket || !BackgroundIsDue()) {
    if (!held_ && background_.front() == ticket) {
      changed_.WaitUntil(mutex_, background_from_);
    } else {
      changed_.Wait(mutex_);
    }
  }
  background_.pop_front();
  background_held_ = true;
  return Hold();
}

void DeviceTurn::Busy(bool more) {
  MutexLock lock(mutex_);
  busy_ += more ? 1 : -1;
  changed_.NotifyAll();
}

int DeviceTurn::busy() const {
  MutexLock lock(mutex_);
  return busy_;
}

size_t DeviceTurn::waiting() const {
  MutexLock lock(mutex_);
  return answers_.size() + background_.size();
}

DeviceTurn::Held DeviceTurn::Hold() {
  held_ = true;
  begun_ = Clock::now();
  return Held(this, ++number_);
}

void DeviceTurn::Leave(uint64_t number) {
  MutexLock lock(mutex_);
  if (!held_ || number != number_) return;  // it was taken back
  if (background_held_) {
    const Clock::time_point now = Clock::now();
    background_from_ = now + kLeftToAnswers * (now - begun_);
  }
  held_ = background_held_ = false;
  changed_.NotifyAll();
}

void DeviceTurn::TakeBack() {
  MutexLock lock(mutex_);
  held_ = background_held_ = false;
  changed_.NotifyAll();
}

}  // namespace llava
