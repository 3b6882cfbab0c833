#include "tests/client/fake_gateway.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <utility>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/support/slowdown.h"

namespace llava {

v1::ChatEvent Started(const std::string& session_id, const std::string& turn_id) {
  v1::ChatEvent event;
  event.mutable_turn_started()->set_session_id(session_id);
  event.mutable_turn_started()->set_turn_id(turn_id);
  return event;
}

v1::ChatEvent Text(uint64_t offset, const std::string& text) {
  v1::ChatEvent event;
  event.mutable_text()->set_offset(offset);
  event.mutable_text()->set_text(text);
  return event;
}

v1::ChatEvent Finished(uint64_t text_bytes, v1::FinishReason reason) {
  v1::ChatEvent event;
  event.mutable_turn_finished()->set_reason(reason);
  event.mutable_turn_finished()->set_text_bytes(text_bytes);
  event.mutable_turn_finished()->mutable_usage()->set_generated_tokens(3);
  event.mutable_turn_finished()->mutable_timings()->set_time_to_first_token_seconds(0.25);
  event.mutable_turn_finished()->mutable_timings()->set_decode_seconds(0.5);
  return event;
}

grpc::Status Overloaded(const std::string& message, int retry_seconds) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(retry_seconds);
  google::rpc::Status details;
  details.set_code(static_cast<int>(grpc::StatusCode::UNAVAILABLE));
  details.set_message(message);
  details.add_details()->PackFrom(retry);
  return {grpc::StatusCode::UNAVAILABLE, message, details.SerializeAsString()};
}

FakeGateway::FakeGateway() {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  address_ = "127.0.0.1:" + std::to_string(port);
}

FakeGateway::~FakeGateway() {
  server_->Shutdown(std::chrono::system_clock::now());
  if (stopper_.joinable()) stopper_.join();
}

void FakeGateway::Hang(const std::string& method) {
  std::lock_guard lock(mutex_);
  hanging_method_ = method;
}

void FakeGateway::HangIf(const std::string& method, Context* context) {
  std::unique_lock lock(mutex_);
  if (hanging_method_ != method) return;
  ++hanging_;
  changed_.notify_all();
  while (!context->IsCancelled()) changed_.wait_for(lock, std::chrono::milliseconds(10));
}

void FakeGateway::WaitForHanging(int count) const {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, kSlowdown * std::chrono::seconds(60), [&] { return hanging_ >= count; });
}

void FakeGateway::set_script(Script script) {
  std::lock_guard lock(mutex_);
  script_ = std::make_unique<Script>(std::move(script));
}

void FakeGateway::set_resume_scripts(std::vector<Script> scripts) {
  std::lock_guard lock(mutex_);
  resume_scripts_ = std::move(scripts);
}

std::vector<v1::ResumeTurnRequest> FakeGateway::resumed() const {
  std::lock_guard lock(mutex_);
  return resumed_;
}

grpc::Status FakeGateway::ResumeTurn(Context*, const v1::ResumeTurnRequest* request,
                                     grpc::ServerWriter<v1::ResumeTurnResponse>* writer) {
  Script script;
  {
    std::lock_guard lock(mutex_);
    if (resume_scripts_.empty()) return {grpc::StatusCode::UNIMPLEMENTED, "no ResumeTurn here"};
    script = resume_scripts_[std::min(resumed_.size(), resume_scripts_.size() - 1)];
    resumed_.push_back(*request);
  }
  v1::ResumeTurnResponse response;
  for (const v1::ChatEvent& event : script.events) {
    *response.mutable_event() = event;
    writer->Write(response);
  }
  return script.status;
}

void FakeGateway::set_upload_status(grpc::Status status) {
  std::lock_guard lock(mutex_);
  upload_status_ = std::move(status);
}

void FakeGateway::set_turns(std::vector<v1::Turn> turns) {
  std::lock_guard lock(mutex_);
  turns_ = std::move(turns);
}

std::vector<v1::ChatRequest> FakeGateway::asked() const {
  std::lock_guard lock(mutex_);
  return asked_;
}

std::string FakeGateway::authorization() const {
  std::lock_guard lock(mutex_);
  return authorization_;
}

std::vector<std::string> FakeGateway::uploads() const {
  std::lock_guard lock(mutex_);
  return uploads_;
}

std::vector<v1::UploadImageHeader> FakeGateway::upload_headers() const {
  std::lock_guard lock(mutex_);
  return upload_headers_;
}

std::vector<v1::CancelTurnRequest> FakeGateway::cancelled() const {
  std::lock_guard lock(mutex_);
  return cancelled_;
}

std::vector<v1::CreateSessionRequest> FakeGateway::created() const {
  std::lock_guard lock(mutex_);
  return created_;
}

std::vector<std::string> FakeGateway::deleted() const {
  std::lock_guard lock(mutex_);
  return deleted_;
}

void FakeGateway::WaitForQuestions(size_t count) const {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, kSlowdown * std::chrono::seconds(60),
                    [&] { return asked_.size() >= count; });
}

grpc::Status FakeGateway::CreateSession(Context* context, const v1::CreateSessionRequest* request,
                                        v1::CreateSessionResponse* response) {
  HangIf("CreateSession", context);
  std::lock_guard lock(mutex_);
  const auto key = context->client_metadata().find("authorization");
  authorization_ = key == context->client_metadata().end()
                       ? ""
                       : std::string(key->second.data(), key->second.size());
  if (request->model() == "unknown") {
    return {grpc::StatusCode::NOT_FOUND, "model \"unknown\" is not served; served: fake"};
  }
  created_.push_back(*request);
  response->mutable_session()->set_id("session-" + std::to_string(created_.size()));
  response->mutable_session()->set_model(request->model().empty() ? "fake" : request->model());
  if (request->has_system_prompt()) {
    response->mutable_session()->set_system_prompt(request->system_prompt());
  }
  return grpc::Status::OK;
}

grpc::Status FakeGateway::GetSession(Context*, const v1::GetSessionRequest* request,
                                     v1::GetSessionResponse* response) {
  if (request->session_id() != "old") {
    return {grpc::StatusCode::NOT_FOUND, "there is no session " + request->session_id()};
  }
  response->mutable_session()->set_id("old");
  response->mutable_session()->set_model("fake");
  return grpc::Status::OK;
}

grpc::Status FakeGateway::DeleteSession(Context* context, const v1::DeleteSessionRequest* request,
                                        v1::DeleteSessionResponse*) {
  HangIf("DeleteSession", context);
  std::lock_guard lock(mutex_);
  deleted_.push_back(request->session_id());
  return grpc::Status::OK;
}

grpc::Status FakeGateway::ListTurns(Context*, const v1::ListTurnsRequest* request,
                                    v1::ListTurnsResponse* response) {
  std::lock_guard lock(mutex_);
  const size_t begin = request->page_token().empty() ? 0 : std::stoul(request->page_token());
  const size_t end = std::min(begin + 2, turns_.size());
  for (size_t i = begin; i < end; ++i) *response->add_turns() = turns_[i];
  if (end < turns_.size()) response->set_next_page_token(std::to_string(end));
  return grpc::Status::OK;
}

grpc::Status FakeGateway::ListModels(Context* context, const v1::ChatServiceListModelsRequest*,
                                     v1::ChatServiceListModelsResponse* response) {
  HangIf("ListModels", context);
  v1::ModelInfo* info = response->add_models();
  info->mutable_model()->set_name("fake");
  info->mutable_model()->set_version(7);
  info->set_context_tokens(512);
  info->set_image_tokens(64);
  response->set_default_model("fake");
  return grpc::Status::OK;
}

grpc::Status FakeGateway::CancelTurn(Context* context, const v1::CancelTurnRequest* request,
                                     v1::CancelTurnResponse* response) {
  std::unique_lock lock(mutex_);
  cancelled_.push_back(*request);
  while (script_ != nullptr && script_->hang_cancel && !context->IsCancelled()) {
    changed_.wait_for(lock, std::chrono::milliseconds(10));
  }
  response->set_was_running(script_ != nullptr && script_->wait_for_cancel);
  changed_.notify_all();
  return grpc::Status::OK;
}

grpc::Status FakeGateway::UploadImage(Context*, grpc::ServerReader<v1::UploadImageRequest>* reader,
                                      v1::UploadImageResponse* response) {
  v1::UploadImageRequest request;
  if (!reader->Read(&request) || !request.has_header()) {
    return {grpc::StatusCode::INVALID_ARGUMENT, "the first message must be the header"};
  }
  {
    std::lock_guard lock(mutex_);
    upload_headers_.push_back(request.header());
    if (!upload_status_.ok()) return upload_status_;
  }
  std::string bytes;
  while (reader->Read(&request)) bytes += request.chunk();
  std::lock_guard lock(mutex_);
  uploads_.push_back(bytes);
  response->mutable_image()->set_id("image-" + std::to_string(uploads_.size()));
  response->mutable_image()->set_format("png");
  response->mutable_image()->set_size_bytes(bytes.size());
  return grpc::Status::OK;
}

grpc::Status FakeGateway::Chat(Context* context, const v1::ChatRequest* request,
                               grpc::ServerWriter<v1::ChatResponse>* writer) {
  Script script;
  size_t cancelled_before;
  {
    std::lock_guard lock(mutex_);
    asked_.push_back(*request);
    cancelled_before = cancelled_.size();
    if (script_ != nullptr) {
      script = *script_;
    } else {
      const std::string text = "You asked: " + request->text();
      script.events = {Started(request->session_id(), "turn-" + std::to_string(asked_.size())),
                       Text(0, text.substr(0, 5)), Text(5, text.substr(5)), Finished(text.size())};
    }
    changed_.notify_all();
  }
  v1::ChatResponse response;
  uint64_t bytes = 0;
  for (const v1::ChatEvent& event : script.events) {
    if (event.has_text()) bytes = event.text().offset() + event.text().text().size();
    *response.mutable_event() = event;
    writer->Write(response);
  }
  if (script.wait_for_cancel) {
    std::unique_lock lock(mutex_);
    while (!context->IsCancelled() &&
           (script.ignore_cancel || cancelled_.size() == cancelled_before)) {
      changed_.wait_for(lock, std::chrono::milliseconds(10));
    }
    lock.unlock();
    *response.mutable_event() = Finished(bytes, v1::FINISH_REASON_CANCELLED);
    writer->Write(response);
  }
  if (script.stop) {
    std::lock_guard lock(mutex_);
    stopper_ = std::thread([this] { server_->Shutdown(); });
    // So that the client has heard of the end when it hears the status; it may as well not have.
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
  return script.status;
}

}  // namespace llava
