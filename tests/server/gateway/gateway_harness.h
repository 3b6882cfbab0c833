#pragma once

// A gateway with fake services behind it, on loopback, and a client in front.

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "llava/v1/chat.grpc.pb.h"
#include "server/gateway/gateway.h"
#include "tests/support/eventually.h"
#include "tests/support/fake_backends.h"
#include "tests/support/slowdown.h"
#include "tests/support/temp_folder.h"

namespace llava {

// What came out of a Chat call.
struct Answer {
  grpc::Status status;
  v1::TurnStarted started;
  std::string text;
  int deltas = 0;
  int logprobs = 0;
  bool offsets_fit = true;
  int events_after_end = 0;
  bool is_finished = false;
  v1::TurnFinished finished;
};

// What came out of an UploadImage call.
struct Upload {
  grpc::Status status;
  v1::ImageInfo image;
  size_t sent = 0;  // chunks before the gateway said no
};

class GatewayTest : public testing::Test {
 protected:
  GatewayTest();
  ~GatewayTest() override;

  // Starts the gateway on the same folder and services; waits until it is ready, if `wait`.
  void StartGateway(bool wait = true);
  void StopGateway();
  void AwaitReady(bool ready);
  std::string reason();

  // Client side. Each call carries `key_` and a deadline of a minute (times kSlowdown) unless told
  // otherwise.
  std::unique_ptr<grpc::ClientContext> Context(
      std::chrono::milliseconds timeout = kSlowdown * std::chrono::seconds(60));
  std::string NewSession(const v1::CreateSessionRequest& request = {});
  v1::ChatRequest Question(const std::string& session, const std::string& text,
                           const std::vector<std::string>& pictures = {});
  // `on_text` runs after the first text, with the answer so far.
  Answer Ask(const v1::ChatRequest& request,
             const std::function<void(grpc::ClientContext&, const Answer&)>& on_text = {},
             std::chrono::milliseconds timeout = kSlowdown * std::chrono::seconds(60));
  // Follows a turn from a byte on; `text` is what comes behind it.
  Answer Resume(const std::string& session, const std::string& turn, uint64_t after_offset = 0,
                std::optional<uint32_t> restarts = std::nullopt);
  // Asks and goes away after the first text. The turn goes on.
  Answer AskAndLeave(const v1::ChatRequest& request);
  // `announced` 0: no size is told.
  Upload Send(const std::string& session, const std::string& picture, uint64_t announced = 0,
              size_t chunk_bytes = 16);
  std::vector<v1::Turn> Turns(const std::string& session);
  // The value of a metric line such as `name{a="b"}`, 0 if there is none.
  double Metric(const std::string& line_start);

  TempFolder folder_;
  std::string key_;  // API key; empty: none is sent
  GatewayOptions options_;
  std::string address_;  // of the running gateway
  FakeVision vision_;
  FakeLlm llm_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<Admission> admission_;
  std::unique_ptr<Gateway> gateway_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::ChatService::Stub> stub_;
  std::unique_ptr<v1::ModelService::Stub> models_;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  Gateway::Readiness readiness_;
};

}  // namespace llava
