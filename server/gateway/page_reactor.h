#pragma once

// The end of a call that answers with a page, which may be megabytes.

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <utility>

#include "server/gateway/key_lanes.h"
#include "server/gateway/send_watch.h"
#include "server/runtime/mutex.h"

namespace llava {

// Holds the call's place among those of its key until the client has the page, and ends the call if
// the client does not take it. gRPC holds one reference until it is done with the call.
class PageReactor : public grpc::ServerUnaryReactor {
 public:
  static std::shared_ptr<PageReactor> Create(grpc::CallbackServerContext& context,
                                             SendWatch& watch) {
    std::shared_ptr<PageReactor> reactor(new PageReactor(context));
    reactor->self_ = reactor;
    watch.Add([weak = std::weak_ptr<PageReactor>(reactor)](SendWatch::Clock::time_point since) {
      const auto self = weak.lock();
      return self && self->CheckSent(since);
    });
    return reactor;
  }

  void Hold(KeyLanes::Place place) {
    MutexLock lock(mutex_);
    place_ = std::move(place);
  }
  // A page of so many bytes is on its way; right before Finish. How far it has come nobody tells: a
  // slow client gets time for all of it.
  void BeginSend(size_t bytes) {
    MutexLock lock(mutex_);
    sent_ = SendWatch::Clock::now() + std::chrono::milliseconds(bytes / kBytesPerMs);
  }
  // The client has gone.
  bool gone() {
    MutexLock lock(mutex_);
    return gone_;
  }

 private:
  static constexpr size_t kBytesPerMs = 32;

  explicit PageReactor(grpc::CallbackServerContext& context) : context_(&context) {}

  void OnCancel() override {
    MutexLock lock(mutex_);
    gone_ = true;
  }
  void OnDone() override {
    KeyLanes::Place place;
    {
      MutexLock lock(mutex_);
      context_ = nullptr;
      place = std::move(place_);
    }
    place.reset();
    self_.reset();
  }
  bool CheckSent(SendWatch::Clock::time_point since) {
    MutexLock lock(mutex_);
    if (context_ == nullptr) return false;
    if (!sent_ || *sent_ > since) return true;
    context_->TryCancel();
    return false;
  }

  std::shared_ptr<PageReactor> self_;  // released by OnDone
  Mutex mutex_;
  grpc::CallbackServerContext* context_ LLAVA_GUARDED_BY(mutex_);  // until OnDone
  KeyLanes::Place place_ LLAVA_GUARDED_BY(mutex_);
  std::optional<SendWatch::Clock::time_point> sent_ LLAVA_GUARDED_BY(mutex_);
  bool gone_ LLAVA_GUARDED_BY(mutex_) = false;
};

}  // namespace llava
