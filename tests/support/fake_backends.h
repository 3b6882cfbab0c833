#pragma once

// A vision and an LLM service in this process, over loopback, that behave and misbehave on command.

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "llava/v1/llm.grpc.pb.h"
#include "llava/v1/models.grpc.pb.h"
#include "llava/v1/vision.grpc.pb.h"

namespace llava {

// Labels of a model repository, which several processes may share. Thread-safe.
class FakeLabels {
 public:
  // Returns the version before; 0 removes the label.
  uint64_t Set(const std::string& name, const std::string& label, uint64_t version);
  // The version that is stable now; 0: there was none before.
  uint64_t Rollback(const std::string& name);
  std::vector<std::string> Of(const std::string& name, uint64_t version) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, std::string>, std::vector<uint64_t>> history_;  // latest last
};

// Lists the models that it was given, loads whatever is asked for. Thread-safe.
class FakeModels : public v1::ModelService::Service {
 public:
  // `coming` are to be served and are not yet.
  void Set(std::vector<v1::ModelInfo> models, std::vector<v1::ModelInfo> coming = {});
  // The same, but nobody hears of it before ListServed: those before are listed on.
  void Exchange(std::vector<v1::ModelInfo> models, std::vector<v1::ModelInfo> coming = {});
  // Who asks for a model that is not served does so.
  void ListServed();
  std::vector<v1::ModelInfo> Get() const;
  // From now on the labels of another process's repository.
  void ShareLabels(const FakeModels& other);
  // What changes are answered with; OK: they are made.
  void Refuse(grpc::Status status);
  // LoadModel does not answer until its caller goes away.
  void PauseLoads();
  // Of a version's status.
  void SetHealth(uint64_t version, double drift, uint64_t nan_outputs);
  int changes() const;  // calls that changed something or were refused

  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override;
  grpc::Status GetModelStatus(grpc::ServerContext*, const v1::GetModelStatusRequest* request,
                              v1::GetModelStatusResponse* response) override;
  grpc::Status LoadModel(grpc::ServerContext* context, const v1::LoadModelRequest* request,
                         v1::LoadModelResponse* response) override;
  grpc::Status UnloadModel(grpc::ServerContext*, const v1::UnloadModelRequest* request,
                           v1::UnloadModelResponse* response) override;
  grpc::Status SetLabel(grpc::ServerContext*, const v1::SetLabelRequest* request,
                        v1::SetLabelResponse* response) override;
  grpc::Status Rollback(grpc::ServerContext*, const v1::RollbackRequest* request,
                        v1::RollbackResponse* response) override;

 private:
  struct Health {
    double drift = 0;
    uint64_t nan_outputs = 0;
  };
  // NOT_FOUND, or what changes are refused with.
  grpc::Status Change(const std::string& name);

  mutable std::mutex mutex_;
  std::vector<v1::ModelInfo> models_, coming_;
  std::optional<std::vector<v1::ModelInfo>> listed_;  // instead of both
  std::shared_ptr<FakeLabels> labels_ = std::make_shared<FakeLabels>();
  std::map<uint64_t, Health> health_;
  grpc::Status refusal_;
  bool pause_loads_ = false;
  int changes_ = 0;
};

// A server on a loopback port that stays its own when it is stopped and started again.
class FakeServer {
 public:
  explicit FakeServer(
      std::vector<grpc::Service*> services,
      std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials());
  ~FakeServer();

  void Start();
  // Ends calls under way at once.
  void Stop();
  std::string address() const;

 private:
  const std::vector<grpc::Service*> services_;
  const std::shared_ptr<grpc::ServerCredentials> credentials_;
  std::unique_ptr<grpc::Server> server_;
  // Bound to the port, never listening: nobody else gets it while the server is stopped.
  int reservation_ = -1;
  int port_ = 0;
};

// Where calls stop until the test lets them go on. Thread-safe.
class Gate {
 public:
  // Lets go on who waits here by now.
  void Open();
  // What `Await` takes, so that a call that begins before an Open is let go on by it.
  int openings() const;
  // Returns at the first opening beyond `openings`. False: the caller went away meanwhile.
  bool Await(grpc::ServerContext* context, int openings) const;

 private:
  mutable std::mutex mutex_;
  int openings_ = 0;
};

// Features are 2 rows that depend on the picture; "bad" pictures are told by their bytes.
class FakeVision : public v1::VisionService::Service {
 public:
  struct Behaviour {
    // Returned instead of an answer while `failures` > 0.
    grpc::Status failure = grpc::Status(grpc::StatusCode::INTERNAL, "tower fell");
    int failures = 0;
    // Header and first chunk only, then UNAVAILABLE.
    bool hang_up = false;
    // A key of another picture in the header.
    bool wrong_key = false;
    std::chrono::milliseconds delay{0};
    bool pause = false;        // until Release or until the caller goes
    bool pause_drops = false;  // the same for DropFeatures
    // Bytes of a feature tensor.
    int64_t width = 200'000;
  };

  FakeVision();
  void Set(const Behaviour& behaviour);
  // Lets the calls go on that pause now.
  void Release() { gate_.Open(); }
  int encodes() const;
  v1::EncodeRequest last_request() const;
  int drops() const;  // calls
  // Pictures that were dropped, as they are named in sessions.
  std::multiset<std::string> dropped() const;
  FakeModels& models() { return models_; }
  FakeServer& server() { return server_; }

  grpc::Status Encode(grpc::ServerContext* context, const v1::EncodeRequest* request,
                      grpc::ServerWriter<v1::EncodeResponse>* writer) override;
  grpc::Status DropFeatures(grpc::ServerContext* context,
                            const v1::VisionServiceDropFeaturesRequest* request,
                            v1::VisionServiceDropFeaturesResponse* response) override;

 private:
  mutable std::mutex mutex_;
  Behaviour behaviour_;
  int encodes_ = 0, drops_ = 0;
  v1::EncodeRequest last_request_;
  std::set<std::string> seen_;  // "cached" from the second time on
  std::multiset<std::string> dropped_;
  Gate gate_;
  FakeModels models_;
  FakeServer server_;
};

// Answers "<text>! pictures: <n>, turns: <n>", one word a delta, one token a word. Goes on with
// answers that were broken off.
class FakeLlm : public v1::LlmService::Service {
 public:
  struct Behaviour {
    grpc::Status failure = grpc::Status(grpc::StatusCode::UNAVAILABLE, "worker died");
    int failures = 0;      // before the first token
    int put_failures = 0;  // calls of PutFeatures that end with `failure`
    bool arrives = false;  // with `failures`: the caller sees first that its request has come
    // After so many deltas the call ends with `failure`, `deaths` times.
    int fail_after_deltas = -1;
    int deaths = 1'000'000;
    // After so many deltas the call pauses, until Release or until the caller goes.
    int pause_after = -1;
    std::chrono::milliseconds delay{0};  // before each delta
    uint32_t context_tokens = 4096;      // words of all messages
    bool forget_features = false;        // answers MissingFeatures whatever was put
    bool count_by_features = false;      // CountTokens as well, if they are missing
    bool pause_counts = false;           // CountTokens, until Release or until the caller goes
    bool wrong_offset = false;
    bool wrong_version = false;
  };

  FakeLlm();
  void Set(const Behaviour& behaviour);
  // Lets the calls go on that pause now.
  void Release() { gate_.Open(); }
  // As after a restart.
  void ForgetFeatures();
  v1::GenerateRequest last_request() const;
  v1::FeatureHeader last_put() const;
  std::chrono::system_clock::time_point last_deadline() const;
  int generates() const;
  int counts() const;
  int puts() const;
  // The last PutFeatures came over another connection than the last Generate.
  bool puts_apart() const;
  std::multiset<std::string> dropped() const;
  std::multiset<std::string> dropped_sessions() const;
  // Calls that saw their caller go away.
  int cancelled() const;
  FakeModels& models() { return models_; }
  FakeServer& server() { return server_; }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override;
  grpc::Status PutFeatures(grpc::ServerContext* context,
                           grpc::ServerReader<v1::PutFeaturesRequest>* reader,
                           v1::PutFeaturesResponse* response) override;
  grpc::Status DropFeatures(grpc::ServerContext* context,
                            const v1::LlmServiceDropFeaturesRequest* request,
                            v1::LlmServiceDropFeaturesResponse* response) override;
  grpc::Status CountTokens(grpc::ServerContext* context, const v1::CountTokensRequest* request,
                           v1::CountTokensResponse* response) override;

 private:
  Behaviour Record(grpc::ServerContext* context, const v1::GenerateRequest& request);
  // Nothing to say, or the status for a request that cannot be served.
  grpc::Status Refusal(const Behaviour& behaviour, const v1::GenerateRequest& request);
  grpc::Status WhatIsMissing(
      const Behaviour& behaviour,
      const google::protobuf::RepeatedPtrField<v1::PromptMessage>& messages) const;

  mutable std::mutex mutex_;
  Behaviour behaviour_;
  std::set<std::string> features_;
  std::multiset<std::string> dropped_, dropped_sessions_;
  v1::GenerateRequest last_request_;
  v1::FeatureHeader last_put_;
  std::string generate_peer_, put_peer_;
  std::chrono::system_clock::time_point last_deadline_;
  int generates_ = 0, counts_ = 0, puts_ = 0, cancelled_ = 0;
  Gate gate_;
  FakeModels models_;
  FakeServer server_;
};

// What the fakes list at first: tower "tower" version 1, language model "emoji" version 1.
v1::ModelInfo FakeTower(char digest_letter = 't');
v1::ModelInfo FakeLanguageModel(const std::string& name, uint64_t version, char tower_letter = 't');

// A valid 24-bit BMP file; other seeds give other bytes.
std::string FakePicture(int seed, int width = 3, int height = 2);

}  // namespace llava
