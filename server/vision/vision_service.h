#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "llava/v1/vision.grpc.pb.h"
#include "server/runtime/metrics.h"
#include "server/runtime/service_process.h"
#include "server/vision/engine.h"
#include "server/vision/feature_cache.h"
#include "server/vision/tower_set.h"

namespace llava {

// llava.v1.VisionService over the towers that are served: checks the request, posts it, streams the
// result. The gRPC threads never decode, hash or wait. Thread-safe.
class VisionService : public v1::VisionService::CallbackService {
 public:
  // What it is given must outlive the service. While no tower is there requests get UNAVAILABLE.
  // `cache`: the one of all towers.
  VisionService(const TowerSet& towers, FeatureCache& cache, Admission& admission, Metrics& metrics)
      : towers_(towers), cache_(cache), admission_(admission), metrics_(metrics) {}

  grpc::ServerWriteReactor<v1::EncodeResponse>* Encode(grpc::CallbackServerContext* context,
                                                       const v1::EncodeRequest* request) override;
  grpc::ServerUnaryReactor* DropFeatures(grpc::CallbackServerContext* context,
                                         const v1::VisionServiceDropFeaturesRequest* request,
                                         v1::VisionServiceDropFeaturesResponse* response) override;

 private:
  class Call;
  absl::StatusOr<std::shared_ptr<VisionServable>> FindTower(const v1::VisionSpec& spec) const;
  static absl::StatusOr<EncodeJob> MakeJob(const v1::EncodeRequest& request,
                                           const VisionEngine& engine);

  const TowerSet& towers_;
  FeatureCache& cache_;
  Admission& admission_;
  Metrics& metrics_;
};

}  // namespace llava
