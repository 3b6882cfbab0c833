#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/llm.grpc.pb.h"
#include "llava/v1/vision.grpc.pb.h"
#include "server/gateway/backend.h"
#include "server/runtime/mutex.h"

namespace llava {

// Brings the features of one picture from the vision service to the LLM service, chunk by chunk:
// the next chunk is read when the one before is written, so no more than one is held here.
//
// Owns itself until both calls have ended. Obligations towards gRPC: both calls carry a hold, as
// each is driven from the other's reactions; a hold goes exactly when no operation will follow.
class FeatureTransfer {
 public:
  struct Result {
    v1::FeatureKey key;
    // False: the vision service had to compute them.
    bool cached = false;
  };
  // `failed`: the service of which the error is; null without one, and when cancelled.
  using Done = std::function<void(absl::StatusOr<Result>, const Backend* failed)>;

  // `expected` is the key asked for; only its numerics may come back different. The caller holds
  // leases of both until `done`, runs once, on a gRPC thread, and must not block; errors name the
  // service that failed.
  static std::shared_ptr<FeatureTransfer> Start(Backend& vision, Backend& llm,
                                                v1::EncodeRequest request, v1::FeatureKey expected,
                                                std::chrono::system_clock::time_point deadline,
                                                Done done);
  // Thread-safe. `done` follows with CANCELLED unless the transfer has just ended.
  void Cancel();

 private:
  struct Reader : grpc::ClientReadReactor<v1::EncodeResponse> {
    void OnReadDone(bool ok) override { transfer->OnRead(ok); }
    void OnDone(const grpc::Status& status) override { transfer->OnReaderDone(status); }
    FeatureTransfer* transfer = nullptr;
  };
  struct Writer : grpc::ClientWriteReactor<v1::PutFeaturesRequest> {
    void OnWriteDone(bool ok) override { transfer->OnWritten(ok); }
    void OnDone(const grpc::Status& status) override { transfer->OnWriterDone(status); }
    FeatureTransfer* transfer = nullptr;
  };

  FeatureTransfer(Backend& vision, Backend& llm, v1::EncodeRequest request, v1::FeatureKey expected,
                  Done done);

  void OnRead(bool ok);
  void OnReaderDone(const grpc::Status& status);
  void OnWritten(bool ok);
  void OnWriterDone(const grpc::Status& status);
  // The first message: opens the call to the LLM service.
  void OpenWriter();
  absl::Status CheckHeader() const;
  void End();

  Backend& vision_;
  Backend& llm_;
  const v1::EncodeRequest request_;
  const v1::FeatureKey expected_;
  Done done_;
  std::shared_ptr<FeatureTransfer> self_;

  // Touched by one reaction at a time: reads and writes take turns.
  Reader reader_;
  Writer writer_;
  CallContext reader_context_;
  CallContext writer_context_;
  v1::EncodeResponse read_;
  v1::PutFeaturesRequest written_;
  v1::PutFeaturesResponse response_;
  Result result_;
  bool writer_open_ = false;
  bool writer_broke_ = false;    // the LLM service ended its call before the last chunk
  absl::Status protocol_error_;  // a message of the vision service that makes no sense
  absl::Status reader_status_;
  absl::Status writer_status_;

  Mutex mutex_;
  bool cancelled_ LLAVA_GUARDED_BY(mutex_) = false;
};

}  // namespace llava
