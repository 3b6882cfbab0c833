#pragma once

// The services of llava-vision over loopback with the fixture tower.

#include <grpcpp/grpcpp.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "server/vision/inference_service.h"
#include "server/vision/tower_loader.h"
#include "server/vision/vision_service.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {

inline std::string FixturePicture(const std::string& name) {
  return ReadBytes(FixturesDir() / "images" / name);
}

class VisionTestServer {
 public:
  explicit VisionTestServer(RepositoryCalls calls = {}) {
    VisionEngine::Options options;
    options.max_batch = 4;
    options.preferred_batches = {2, 4};
    options.limits.max_bytes = 100'000;
    options.limits.max_pixels = 20'000;
    loader = std::make_unique<VisionServableLoader>(TowerOptions{}, options, cache, metrics);
    auto loaded = loader->Load({"clip", 7, FixturesDir() / "clip-tower"}, {});
    if (!loaded.ok()) throw std::runtime_error(loaded.status().ToString());
    servable = *std::move(loaded);
    vision = std::make_unique<VisionService>(loader->towers(), cache, admission, metrics);
    inference =
        std::make_unique<InferenceService>(loader->towers(), std::move(calls), admission, metrics);
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(vision.get());
    builder.RegisterService(inference.get());
    server = builder.BuildAndStart();
    channel = grpc::CreateChannel("127.0.0.1:" + std::to_string(port),
                                  grpc::InsecureChannelCredentials());
    loader->Route(servable);
  }

  VisionEngine& engine() { return static_cast<VisionServable&>(*servable).engine(); }

  Metrics metrics{"vision"};
  Admission admission;
  FeatureCache cache{1 << 20, metrics};
  std::unique_ptr<VisionServableLoader> loader;
  std::shared_ptr<Servable> servable;
  std::unique_ptr<VisionService> vision;
  std::unique_ptr<InferenceService> inference;
  std::unique_ptr<grpc::Server> server;
  std::shared_ptr<grpc::Channel> channel;
};

}  // namespace llava
