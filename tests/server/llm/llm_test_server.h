#pragma once

// An LLM service in this process, on loopback, with a real model; and what a client needs to talk
// to it.

#include <grpcpp/grpcpp.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "llava/v1/llm.grpc.pb.h"
#include "server/llm/device_turn.h"
#include "server/llm/llm_options.h"
#include "server/llm/llm_service.h"
#include "tests/support/slowdown.h"

namespace llava {

// Features of a picture, computed here by the tower at `tower`, float32, with their key.
struct TestFeatures {
  v1::FeatureHeader header;
  std::string bytes;
};
TestFeatures ComputeFeatures(const std::filesystem::path& tower, const std::filesystem::path& image,
                             const v1::VisionSpec& spec);

class LlmTestServer {
 public:
  explicit LlmTestServer(LlmOptions options);
  ~LlmTestServer();

  const v1::ModelInfo& info() const { return backend_->info; }
  const RecentSessions& recent() const { return *backend_->recent; }
  v1::LlmService::Stub& stub() { return *stub_; }
  LlmEngine& engine() { return *engine_; }
  DeviceTurn& turn() { return *turn_; }
  FeatureStore& store() { return *store_; }
  Admission& admission() { return admission_; }
  LlmService& service() { return *service_; }
  // The same model under another number.
  std::shared_ptr<const LlmBackend> Renumbered(uint64_t version) const {
    v1::ModelInfo info = backend_->info;
    info.mutable_model()->set_version(version);
    return std::make_shared<const LlmBackend>(info, *engine_, *store_, backend_->recent);
  }
  std::string MetricsText() const { return metrics_.Render(); }

  grpc::Status Put(const TestFeatures& features, v1::PutFeaturesResponse* response = nullptr);
  // A request of one user message, greedy.
  v1::GenerateRequest Ask(const std::string& text,
                          const std::vector<v1::FeatureKey>& images = {}) const;

 private:
  Metrics metrics_{"llm"};
  Admission admission_;
  const std::shared_ptr<DeviceTurn> turn_ = std::make_shared<DeviceTurn>();
  std::unique_ptr<FeatureStore> store_;
  std::unique_ptr<LlmEngine> engine_;
  std::shared_ptr<const LlmBackend> backend_;
  std::unique_ptr<LlmService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::LlmService::Stub> stub_;
};

// As long as it lives a step takes 20 ms, however fast the machine: what goes on in an answer can
// be looked at before it ends.
class SlowDevice {
 public:
  explicit SlowDevice(DeviceTurn& turn) {
    // Two, so that one asks always, and a step comes between them.
    for (std::thread& thread : threads_) {
      thread = std::thread([this, &turn] {
        while (!end_) {
          const DeviceTurn::Held held = turn.ForAnswers();
          std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
      });
    }
  }
  ~SlowDevice() {
    end_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  std::atomic<bool> end_ = false;
  std::array<std::thread, 2> threads_;
};

// Everything one stream said.
struct StreamedAnswer {
  grpc::Status status;
  v1::GenerateStarted started;
  std::vector<v1::GenerateDelta> deltas;
  v1::GenerateFinished finished;
  std::string text;                // all deltas, offsets checked
  std::vector<int32_t> token_ids;  // of all deltas
  bool has_finished = false;
};
StreamedAnswer Generate(v1::LlmService::Stub& stub, const v1::GenerateRequest& request,
                        std::chrono::milliseconds timeout = kSlowdown * std::chrono::seconds(240));

}  // namespace llava
