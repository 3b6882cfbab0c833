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
// of its own: an answer is short (max_new_tokens) and its length is the limit. What is long is made
// piece by piece (Stream).
template <typename Response>
class StreamWriter : public grpc::ServerWriteReactor<Response> {
 public:
  static std::shared_ptr<StreamWriter> Create() {
    auto writer = std::shared_ptr<StreamWriter>(new StreamWriter);
    writer->self_ = writer;
    return writer;
  }

  // `on_gone`: called at most once, on a gRPC thread, when the client cancels or goes away; at once
  // if it has already gone.
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

  // Called when gRPC is done with the call, whether the client has got all or has gone. Before the
  // RPC's method returns.
  void SetOnDone(std::function<void()> on_done) {
    MutexLock lock(mutex_);
    on_done_ = std::move(on_done);
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

  // Messages that are made when the transport takes them, behind what is queued: `next` is asked
  // until it gives nothing, one at a time, with a lock held. No Write after this.
  void Stream(std::function<std::optional<Response>()> next) {
    {
      MutexLock lock(mutex_);
      if (gone_ || closing_) return;
      next_ = std::move(next);
      if (in_flight_ || !Next()) return;
    }
    this->StartWrite(&current_);
  }

  // Ends the stream with `status` once all messages are out.
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
      if (!ok) {  // OnCancel follows and tells the producer
        queue_.clear();
        next_ = nullptr;
      }
      in_flight_ = false;
      queued_bytes_ -= current_bytes_;
      more = Next();
      if (!more) finish = closing_;
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
    std::function<void()> on_done;
    {
      MutexLock lock(mutex_);
      on_done = std::move(on_done_);
      next_ = nullptr;
      context_ = nullptr;
    }
    if (on_done) on_done();
    self_.reset();
  }

  // False: there is nothing to write.
  bool Next() LLAVA_REQUIRES(mutex_) {
    if (!queue_.empty()) {
      current_ = std::move(queue_.front());
      queue_.pop_front();
      current_bytes_ = current_.ByteSizeLong();
    } else {
      std::optional<Response> made = next_ ? next_() : std::nullopt;
      if (!made) {
        next_ = nullptr;
        return false;
      }
      current_ = *std::move(made);
      current_bytes_ = current_.ByteSizeLong();
      queued_bytes_ += current_bytes_;
    }
    in_flight_ = true;
    write_began_ = std::chrono::steady_clock::now();
    return true;
  }

  std::shared_ptr<StreamWriter> self_;  // released by OnDone
  Response current_;                    // owned by gRPC while in_flight_

  mutable Mutex mutex_;
  std::function<void()> on_gone_ LLAVA_GUARDED_BY(mutex_);
  std::function<void()> on_done_ LLAVA_GUARDED_BY(mutex_);
  std::function<std::optional<Response>()> next_ LLAVA_GUARDED_BY(mutex_);
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
