#pragma once

// Bytes that requests may hold together while they are under way.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "server/runtime/metrics.h"

namespace llava {

// Thread-safe; holds may outlive it.
class ByteBudget {
  struct State {
    State(uint64_t most, prometheus::Gauge& gauge) : most(most), gauge(gauge) {}
    const uint64_t most;
    prometheus::Gauge& gauge;
    std::atomic<uint64_t> held = 0;
  };

 public:
  // A part of the budget, given back when this goes. ShrinkTo from any thread, all else by one at a
  // time.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept
        : state_(std::move(other.state_)), bytes_(other.bytes_.exchange(0)) {}
    Hold& operator=(Hold&& other) noexcept {
      std::swap(state_, other.state_);
      other.bytes_ = bytes_.exchange(other.bytes_);
      return *this;
    }
    ~Hold() { ShrinkTo(0); }

    // Gives back all but `bytes`, if it holds more.
    void ShrinkTo(uint64_t bytes) {
      uint64_t now = bytes_;
      do {
        if (bytes >= now) return;
      } while (!bytes_.compare_exchange_weak(now, bytes));
      state_->held -= now - bytes;
      state_->gauge.Decrement(static_cast<double>(now - bytes));
    }
    // Takes `bytes` out into a hold of its own; at most what it holds.
    Hold Split(uint64_t bytes) {
      Hold part(state_, std::min<uint64_t>(bytes, bytes_));
      bytes_ -= part.bytes_;
      return part;
    }

   private:
    friend class ByteBudget;
    Hold(std::shared_ptr<State> state, uint64_t bytes) : state_(std::move(state)), bytes_(bytes) {}

    std::shared_ptr<State> state_;
    std::atomic<uint64_t> bytes_ = 0;
  };

  // `gauge` shows what is held, in all budgets that have it.
  ByteBudget(uint64_t most, prometheus::Gauge& gauge)
      : state_(std::make_shared<State>(most, gauge)) {}

  // Nothing: it would be more than there may be. Whoever comes first may take any number, so that
  // nothing is too large for ever.
  std::optional<Hold> Take(uint64_t bytes) {
    uint64_t held = state_->held;
    do {
      if (held > 0 && (held > state_->most || bytes > state_->most - held)) return std::nullopt;
    } while (!state_->held.compare_exchange_weak(held, held + bytes));
    state_->gauge.Increment(static_cast<double>(bytes));
    return Hold(state_, bytes);
  }

  uint64_t held() const { return state_->held; }

 private:
  const std::shared_ptr<State> state_;
};

}  // namespace llava
