#pragma once

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "llava/v1/chat.grpc.pb.h"

namespace llava {

// A gateway on a free local port whose answers are written by the test. It keeps what it was sent.
// Thread-safe.
class FakeGateway final : public v1::ChatService::Service {
 public:
  // How Chat answers.
  struct Script {
    std::vector<v1::ChatEvent> events;
    grpc::Status status;           // behind the events
    bool wait_for_cancel = false;  // CancelTurn lets it finish, as the real one does
    bool ignore_cancel = false;    // with wait_for_cancel: only the end of the call ends it
    bool hang_cancel = false;      // CancelTurn never answers
    bool stop = false;             // the gateway ends in good order before it says the status
  };

  FakeGateway();
  ~FakeGateway() override;

  const std::string& address() const { return address_; }

  // For all Chat calls from now on. Without a script the answer repeats the question.
  void set_script(Script script);
  // How ResumeTurn answers, call by call; the last one stays.
  void set_resume_scripts(std::vector<Script> scripts);
  // UploadImage is refused with this as soon as the header is there.
  void set_upload_status(grpc::Status status);
  // The turns of each session; two a page.
  void set_turns(std::vector<v1::Turn> turns);

  // What CreateSession was last called with.
  std::string authorization() const;
  std::vector<v1::ChatRequest> asked() const;
  std::vector<v1::ResumeTurnRequest> resumed() const;
  std::vector<std::string> uploads() const;
  std::vector<v1::UploadImageHeader> upload_headers() const;
  std::vector<v1::CancelTurnRequest> cancelled() const;
  std::vector<v1::CreateSessionRequest> created() const;
  std::vector<std::string> deleted() const;
  // From now on calls of this method ("DeleteSession") get no answer.
  void Hang(const std::string& method);
  // Waits until so many do.
  void WaitForHanging(int count) const;
  // Waits until `count` questions have come.
  void WaitForQuestions(size_t count) const;

 private:
  using Context = grpc::ServerContext;
  grpc::Status CreateSession(Context*, const v1::CreateSessionRequest*,
                             v1::CreateSessionResponse*) override;
  grpc::Status GetSession(Context*, const v1::GetSessionRequest*, v1::GetSessionResponse*) override;
  grpc::Status DeleteSession(Context*, const v1::DeleteSessionRequest*,
                             v1::DeleteSessionResponse*) override;
  grpc::Status ListTurns(Context*, const v1::ListTurnsRequest*, v1::ListTurnsResponse*) override;
  grpc::Status ListModels(Context*, const v1::ChatServiceListModelsRequest*,
                          v1::ChatServiceListModelsResponse*) override;
  grpc::Status CancelTurn(Context*, const v1::CancelTurnRequest*, v1::CancelTurnResponse*) override;
  grpc::Status UploadImage(Context*, grpc::ServerReader<v1::UploadImageRequest>*,
                           v1::UploadImageResponse*) override;
  grpc::Status Chat(Context*, const v1::ChatRequest*,
                    grpc::ServerWriter<v1::ChatResponse>*) override;
  grpc::Status ResumeTurn(Context*, const v1::ResumeTurnRequest*,
                          grpc::ServerWriter<v1::ResumeTurnResponse>*) override;

  void HangIf(const std::string& method, Context* context);

  mutable std::mutex mutex_;
  std::string authorization_;
  mutable std::condition_variable changed_;
  std::unique_ptr<Script> script_;
  grpc::Status upload_status_;
  std::vector<v1::Turn> turns_;
  std::vector<v1::ChatRequest> asked_;
  std::vector<Script> resume_scripts_;
  std::vector<v1::ResumeTurnRequest> resumed_;
  std::vector<std::string> uploads_;
  std::vector<v1::UploadImageHeader> upload_headers_;
  std::vector<v1::CancelTurnRequest> cancelled_;
  std::vector<v1::CreateSessionRequest> created_;
  std::vector<std::string> deleted_;
  std::string hanging_method_;
  int hanging_ = 0;

  std::string address_;
  std::unique_ptr<grpc::Server> server_;
  std::thread stopper_;
};

// Events as a gateway sends them.
v1::ChatEvent Started(const std::string& session_id, const std::string& turn_id);
v1::ChatEvent Text(uint64_t offset, const std::string& text);
v1::ChatEvent Finished(uint64_t text_bytes, v1::FinishReason reason = v1::FINISH_REASON_STOP);

// UNAVAILABLE with google.rpc.RetryInfo.
grpc::Status Overloaded(const std::string& message, int retry_seconds);

}  // namespace llava
