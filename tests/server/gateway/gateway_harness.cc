#include "tests/server/gateway/gateway_harness.h"

#include <sstream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace llava {

GatewayTest::GatewayTest() {
  options_.data_dir = folder_.At("data");
  options_.vision = vision_.server().address();
  options_.llm = llm_.server().address();
}

GatewayTest::~GatewayTest() { StopGateway(); }

void GatewayTest::StartGateway(bool wait) {
  metrics_ = std::make_unique<Metrics>("gateway");
  admission_ = std::make_unique<Admission>();
  {
    std::lock_guard lock(mutex_);
    readiness_ = {};
  }
  auto gateway = Gateway::Open(options_, *metrics_, *admission_);
  ASSERT_TRUE(gateway.ok()) << gateway.status();
  gateway_ = *std::move(gateway);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.SetMaxReceiveMessageSize(64 << 20);
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  for (grpc::Service* service : gateway_->services()) builder.RegisterService(service);
  server_ = builder.BuildAndStart();
  ASSERT_TRUE(server_);
  address_ = absl::StrCat("127.0.0.1:", port);
  channel_ = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
  stub_ = v1::ChatService::NewStub(channel_);
  models_ = v1::ModelService::NewStub(channel_);
  gateway_->Start([this](const Gateway::Readiness& readiness) {
    std::lock_guard lock(mutex_);
    readiness_ = readiness;
    changed_.notify_all();
  });
  if (wait) AwaitReady(true);
}

void GatewayTest::StopGateway() {
  if (!gateway_) return;
  admission_->StartDraining();
  gateway_->Stop();
  server_->Shutdown(std::chrono::system_clock::now() + kSlowdown * std::chrono::seconds(10));
  server_->Wait();
  server_.reset();
  gateway_.reset();
}

void GatewayTest::AwaitReady(bool ready) {
  std::unique_lock lock(mutex_);
  const bool came = changed_.wait_for(lock, kSlowdown * std::chrono::seconds(60), [&] {
    return readiness_.ready == ready && (ready || !readiness_.reason.empty());
  });
  ASSERT_TRUE(came) << "readiness stays " << readiness_.ready << ": " << readiness_.reason;
}

std::string GatewayTest::reason() {
  std::lock_guard lock(mutex_);
  return readiness_.reason;
}

std::unique_ptr<grpc::ClientContext> GatewayTest::Context(std::chrono::milliseconds timeout) {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + timeout);
  if (!key_.empty()) context->AddMetadata("authorization", "Bearer " + key_);
  return context;
}

std::string GatewayTest::NewSession(const v1::CreateSessionRequest& request) {
  v1::CreateSessionResponse response;
  const auto status = stub_->CreateSession(Context().get(), request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.session().id();
}

v1::ChatRequest GatewayTest::Question(const std::string& session, const std::string& text,
                                      const std::vector<std::string>& pictures) {
  v1::ChatRequest request;
  request.set_session_id(session);
  request.set_text(text);
  for (const std::string& picture : pictures) request.add_images()->set_data(picture);
  return request;
}

namespace {

void Take(Answer& answer, const v1::ChatEvent& event, uint64_t first_byte) {
  if (answer.is_finished) ++answer.events_after_end;
  if (event.has_turn_started()) answer.started = event.turn_started();
  if (event.has_text()) {
    answer.offsets_fit &= event.text().offset() == first_byte + answer.text.size();
    answer.text += event.text().text();
    answer.logprobs += event.text().logprobs_size();
    ++answer.deltas;
  }
  if (event.has_turn_finished()) {
    answer.is_finished = true;
    answer.finished = event.turn_finished();
  }
}

}  // namespace

Answer GatewayTest::Ask(const v1::ChatRequest& request,
                        const std::function<void(grpc::ClientContext&, const Answer&)>& on_text,
                        std::chrono::milliseconds timeout) {
  Answer answer;
  const auto context = Context(timeout);
  const auto reader = stub_->Chat(context.get(), request);
  v1::ChatResponse response;
  bool told = false;
  while (reader->Read(&response)) {
    Take(answer, response.event(), 0);
    if (response.event().has_text()) {
      if (on_text && !told) on_text(*context, answer);
      told = true;
    }
  }
  answer.status = reader->Finish();
  return answer;
}

Upload GatewayTest::Send(const std::string& session, const std::string& picture, uint64_t announced,
                         size_t chunk_bytes) {
  Upload upload;
  const auto context = Context();
  v1::UploadImageResponse response;
  const auto writer = stub_->UploadImage(context.get(), &response);
  v1::UploadImageRequest request;
  request.mutable_header()->set_session_id(session);
  request.mutable_header()->set_size_bytes(announced);
  bool open = writer->Write(request);
  for (size_t at = 0; open && at < picture.size(); at += chunk_bytes) {
    request.set_chunk(picture.substr(at, chunk_bytes));
    open = writer->Write(request);
    if (open) ++upload.sent;
  }
  writer->WritesDone();
  upload.status = writer->Finish();
  upload.image = response.image();
  return upload;
}

Answer GatewayTest::AskAndLeave(const v1::ChatRequest& request) {
  return Ask(request, [](grpc::ClientContext& context, const Answer&) { context.TryCancel(); });
}

Answer GatewayTest::Resume(const std::string& session, const std::string& turn,
                           uint64_t after_offset, std::optional<uint32_t> restarts) {
  v1::ResumeTurnRequest request;
  request.set_session_id(session);
  request.set_turn_id(turn);
  request.set_after_offset(after_offset);
  if (restarts) request.set_restarts(*restarts);
  Answer answer;
  const auto context = Context();
  const auto reader = stub_->ResumeTurn(context.get(), request);
  v1::ResumeTurnResponse response;
  while (reader->Read(&response)) Take(answer, response.event(), after_offset);
  answer.status = reader->Finish();
  return answer;
}

std::vector<v1::Turn> GatewayTest::Turns(const std::string& session) {
  v1::ListTurnsRequest request;
  request.set_session_id(session);
  v1::ListTurnsResponse response;
  const auto status = stub_->ListTurns(Context().get(), request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return {response.turns().begin(), response.turns().end()};
}

double GatewayTest::Metric(const std::string& line_start) {
  std::istringstream lines(metrics_->Render());
  for (std::string line; std::getline(lines, line);) {
    if (absl::StartsWith(line, line_start)) return std::stod(line.substr(line.rfind(' ')));
  }
  return 0;
}

}  // namespace llava
