#pragma once

#include <atomic>

#include "absl/status/statusor.h"
#include "llava/v1/models.pb.h"
#include "llava/v1/vision.grpc.pb.h"
#include "server/runtime/metrics.h"
#include "server/runtime/service_process.h"
#include "server/vision/engine.h"

namespace llava {

// What a vision process tells about its tower.
v1::ModelInfo TowerModelInfo(const TowerInfo& tower);

// llava.v1.VisionService over an engine: checks the request, posts it, streams the result. The
// gRPC threads never decode, hash or wait. Thread-safe.
class VisionService : public v1::VisionService::CallbackService {
 public:
  // `admission` and `metrics` must outlive the service.
  VisionService(Admission& admission, Metrics& metrics, uint64_t max_image_bytes)
      : admission_(admission), metrics_(metrics), max_image_bytes_(max_image_bytes) {}

  // Until then requests get UNAVAILABLE. `engine` must outlive the last request.
  void SetEngine(VisionEngine* engine) { engine_ = engine; }

  grpc::ServerWriteReactor<v1::EncodeResponse>* Encode(grpc::CallbackServerContext* context,
                                                       const v1::EncodeRequest* request) override;

 private:
  class Call;
  absl::StatusOr<EncodeJob> MakeJob(const v1::EncodeRequest& request, VisionEngine* engine) const;

  Admission& admission_;
  Metrics& metrics_;
  const uint64_t max_image_bytes_;
  std::atomic<VisionEngine*> engine_ = nullptr;
};

}  // namespace llava
