#pragma once

// The end of a call with one answer: its client may take nothing of it.

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>

#include "server/gateway/send_watch.h"
#include "server/runtime/mutex.h"

namespace llava {

// Ends its call if the client does not take the answer. Thread-safe.
class AnswerWatch {
 public:
  // `context` until Done.
  static std::shared_ptr<AnswerWatch> Create(grpc::CallbackServerContext& context,
                                             SendWatch& watch) {
    std::shared_ptr<AnswerWatch> answer(new AnswerWatch(context));
    watch.Add([weak = std::weak_ptr<AnswerWatch>(answer)](SendWatch::Clock::time_point since) {
      const auto self = weak.lock();
      return self && self->Check(since);
    });
    return answer;
  }

  // An answer of so many bytes is on its way; right before Finish. How far it has come nobody
  // tells: a slow client gets time for all of it.
  void BeginSend(size_t bytes) {
    MutexLock lock(mutex_);
    sent_ = SendWatch::Clock::now() + std::chrono::milliseconds(bytes / kBytesPerMs);
  }
  // gRPC is done with the call.
  void Done() {
    MutexLock lock(mutex_);
    context_ = nullptr;
  }

 private:
  static constexpr size_t kBytesPerMs = 32;

  explicit AnswerWatch(grpc::CallbackServerContext& context) : context_(&context) {}

  bool Check(SendWatch::Clock::time_point since) {
    MutexLock lock(mutex_);
    if (context_ == nullptr) return false;
    if (!sent_ || *sent_ > since) return true;
    context_->TryCancel();
    return false;
  }

  Mutex mutex_;
  grpc::CallbackServerContext* context_ LLAVA_GUARDED_BY(mutex_);
  std::optional<SendWatch::Clock::time_point> sent_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
