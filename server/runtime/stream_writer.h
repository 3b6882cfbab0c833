#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "server/runtime/mutex.h"

namespace llava {

// Sends a server stream from any thread: queues messages, keeps one write in flight, finishes after
// the last one.
//
// Thread-safe. The RPC holds one reference until gRPC is done with it, the producer another, so
// neither can outlive its object. The producer must call Close exactly once. The queue has no limit
// of its own: an answer is short (max_new_tokens) and its length is the limit.
template <typename Response>
class StreamWriter : public grpc::ServerWriteReactor<Response> {
 public:
  // `on_gone`: called at most once, on a gRPC thread, when the client cancels or goes away.
  static std::shared_ptr<StreamWriter> Create(std::function<void()> on_gone = {}) {
    auto writer = std::shared_ptr<StreamWriter>(new StreamWriter);
    writer->self_ = writer;
    writer->on_gone_ = std::move(on_gone);
    return writer;
  }

  // May be set once the producer exists; called at once if the client has already gone.
  void SetOnGone(std::function<void()> on_gone) {
    {
      MutexLock lock(mutex_);
      if (!gone_) {
        on_gone_ = std::move(on_gone);
        return;
      }
    }
    on_gone();
  }

  // Lets the caller know that the call has arrived, before there is anything to say. At most once,
  // before the first Write and Close.
  void Greet() { this->StartSendInitialMetadata(); }

  // Bytes queued that the transport has not taken yet.
  size_t queued_bytes() const {
    MutexLock lock(mutex_);
    return queued_bytes_;
  }

  // Queues one message. False: the client is gone or the stream is closed, stop producing.
  bool Write(Response message) {
    {
      MutexLock lock(mutex_);
      if (gone_ || closing_) return false;
      queued_bytes_ += message.ByteSizeLong();
      queue_.push_back(std::move(message));
      if (in_flight_) return true;
      Next();
    }
    this->StartWrite(&current_);
    return true;
  }

  // Ends the stream with `status` once all queued messages are out.
  void Close(grpc::Status status) {
    {
      MutexLock lock(mutex_);
      if (closing_) return;
      closing_ = status;
      if (in_flight_) return;
    }
    this->Finish(status);
  }

  // The call, for CancelIfStuck.
  void SetContext(grpc::CallbackServerContext* context) {
    MutexLock lock(mutex_);
    context_ = context;
  }

  // Ends the call if its client has taken nothing since before `since` of what is queued. False:
  // the call is over.
  bool CancelIfStuck(std::chrono::steady_clock::time_point since) {
    MutexLock lock(mutex_);
    if (context_ == nullptr) return false;
    if (in_flight_ && write_began_ < since) context_->TryCancel();
    return true;
  }

  bool gone() const {
    MutexLock lock(mutex_);
    return gone_;
  }

 private:
  StreamWriter() = default;

  void OnWriteDone(bool ok) override {
    bool more = false;
    std::optional<grpc::Status> finish;
    {
      MutexLock lock(mutex_);
      if (!ok) queue_.clear();  // OnCancel follows and tells the producer
      in_flight_ = false;
      queued_bytes_ -= current_bytes_;
      if (!queue_.empty()) {
        Next();
        more = true;
      } else {
        finish = closing_;
      }
    }
    if (more) this->StartWrite(&current_);
    if (finish) this->Finish(*finish);
  }

  void OnCancel() override {
    std::function<void()> on_gone;
    {
      MutexLock lock(mutex_);
      if (gone_) return;
      gone_ = true;
      on_gone = std::move(on_gone_);
      on_gone_ = nullptr;
    }
    if (on_gone) on_gone();
  }

  void OnDone() override {
    {
      MutexLock lock(mutex_);
      context_ = nullptr;
    }
    self_.reset();
  }

  void Next() LLAVA_REQUIRES(mutex_) {
    current_ = std::move(queue_.front());
    queue_.pop_front();
    current_bytes_ = current_.ByteSizeLong();
    in_flight_ = true;
    write_began_ = std::chrono::steady_clock::now();
  }

  std::shared_ptr<StreamWriter> self_;  // released by OnDone
  Response current_;                    // owned by gRPC while in_flight_

  mutable Mutex mutex_;
  std::function<void()> on_gone_ LLAVA_GUARDED_BY(mutex_);
  std::deque<Response> queue_ LLAVA_GUARDED_BY(mutex_);
  bool in_flight_ LLAVA_GUARDED_BY(mutex_) = false;
  std::chrono::steady_clock::time_point write_began_ LLAVA_GUARDED_BY(mutex_);
  grpc::CallbackServerContext* context_ LLAVA_GUARDED_BY(mutex_) = nullptr;  // until OnDone
  size_t queued_bytes_ LLAVA_GUARDED_BY(mutex_) = 0;                         // `current_` included
  size_t current_bytes_ LLAVA_GUARDED_BY(mutex_) = 0;
  bool gone_ LLAVA_GUARDED_BY(mutex_) = false;
  std::optional<grpc::Status> closing_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
