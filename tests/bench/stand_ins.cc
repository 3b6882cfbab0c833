// Services that do no work, to measure what lies between them and a client.
#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "llava/v1/chat.grpc.pb.h"
#include "llava/v1/llm.grpc.pb.h"
#include "server/runtime/tls.h"
#include "tests/bench/usage.h"
#include "tests/support/fake_backends.h"

namespace llava {
namespace {

using Clock = std::chrono::steady_clock;

std::chrono::microseconds pace{0};

// Writes the head of an answer, its tokens and its end. Owns itself. `Messages` makes the messages:
// Head, Token(text, offset), End(tokens, bytes).
template <typename Response, typename Messages>
class TokenStream : public grpc::ServerWriteReactor<Response> {
 public:
  TokenStream(Messages messages, uint32_t tokens)
      : messages_(std::move(messages)), tokens_(tokens) {
    message_ = messages_.Head();
    this->StartWrite(&message_);
  }

 private:
  void OnWriteDone(bool ok) override {
    if (!ok) return this->Finish(grpc::Status::CANCELLED);
    if (ended_) return this->Finish(grpc::Status::OK);
    if (pace.count() == 0 || written_ == tokens_) return Next();
    due_ = std::max(due_ + pace, Clock::now() - pace);
    const auto wait = due_ - Clock::now();
    if (wait <= Clock::duration::zero()) return Next();
    alarm_.Set(std::chrono::system_clock::now() + wait, [this](bool) { Next(); });
  }
  void OnDone() override { delete this; }
  void OnCancel() override {}  // the next write fails

  void Next() {
    if (written_ == tokens_) {
      message_ = messages_.End(tokens_, bytes_);
      ended_ = true;
    } else {
      const std::string text = std::to_string(Clock::now().time_since_epoch().count()) + " ";
      message_ = messages_.Token(text, bytes_);
      bytes_ += text.size();
      ++written_;
    }
    this->StartWrite(&message_);
  }

  Messages messages_;
  const uint32_t tokens_;
  uint32_t written_ = 0;
  uint64_t bytes_ = 0;
  bool ended_ = false;
  Clock::time_point due_ = Clock::now();
  grpc::Alarm alarm_;
  Response message_;
};

uint32_t Tokens(const v1::SamplingParams& sampling) {
  return sampling.has_max_new_tokens() ? sampling.max_new_tokens() : 64;
}

void FillUsage(v1::Usage& usage, uint32_t tokens) {
  usage.set_text_tokens(32);
  usage.set_generated_tokens(tokens);
}

// ------------------------------------------------------------------ LlmService

struct GenerateMessages {
  v1::ModelVersion model;

  v1::GenerateResponse Head() const {
    v1::GenerateResponse response;
    *response.mutable_started()->mutable_model() = model;
    response.mutable_started()->set_text_tokens(32);
    response.mutable_started()->set_tokenizer_digest(std::string(32, 'k'));
    return response;
  }
  v1::GenerateResponse Token(const std::string& text, uint64_t offset) {
    v1::GenerateResponse response;
    response.mutable_delta()->set_text(text);
    response.mutable_delta()->set_text_offset(offset);
    response.mutable_delta()->add_token_ids(static_cast<int32_t>(ids.token_ids_size()));
    ids.add_token_ids(ids.token_ids_size());
    return response;
  }
  v1::GenerateResponse End(uint32_t tokens, uint64_t) {
    v1::GenerateResponse response;
    response.mutable_finished()->set_reason(v1::FINISH_REASON_LENGTH);
    FillUsage(*response.mutable_finished()->mutable_usage(), tokens);
    auto& all = *response.mutable_finished()->mutable_tokens();
    for (const int32_t id : ids.token_ids()) all.add_ids(id);
    all.set_tokenizer_digest(std::string(32, 'k'));
    return response;
  }

  v1::GenerateDelta ids;
};

class QuickLlm : public v1::LlmService::CallbackService {
 public:
  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext*, const v1::GenerateRequest* request) override {
    return new TokenStream<v1::GenerateResponse, GenerateMessages>({request->model(), {}},
                                                                   Tokens(request->sampling()));
  }
  grpc::ServerReadReactor<v1::PutFeaturesRequest>* PutFeatures(grpc::CallbackServerContext*,
                                                               v1::PutFeaturesResponse*) override {
    struct Reader : grpc::ServerReadReactor<v1::PutFeaturesRequest> {
      Reader() { StartRead(&message); }
      void OnReadDone(bool ok) override { ok ? StartRead(&message) : Finish(grpc::Status::OK); }
      void OnDone() override { delete this; }
      v1::PutFeaturesRequest message;
    };
    return new Reader;
  }
};

// ------------------------------------------------------------------ ChatService

struct ChatMessages {
  std::string session;

  v1::ChatResponse Head() const {
    v1::ChatResponse response;
    auto& started = *response.mutable_event()->mutable_turn_started();
    started.set_session_id(session);
    started.set_turn_id(session);
    return response;
  }
  v1::ChatResponse Token(const std::string& text, uint64_t offset) const {
    v1::ChatResponse response;
    response.mutable_event()->mutable_text()->set_text(text);
    response.mutable_event()->mutable_text()->set_offset(offset);
    return response;
  }
  v1::ChatResponse End(uint32_t tokens, uint64_t bytes) const {
    v1::ChatResponse response;
    auto& finished = *response.mutable_event()->mutable_turn_finished();
    finished.set_reason(v1::FINISH_REASON_LENGTH);
    finished.set_text_bytes(bytes);
    FillUsage(*finished.mutable_usage(), tokens);
    return response;
  }
};

class QuickChat : public v1::ChatService::CallbackService {
 public:
  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext* context,
                                          const v1::CreateSessionRequest*,
                                          v1::CreateSessionResponse* response) override {
    response->mutable_session()->set_id("a0000000-0000-4000-8000-000000000000");
    return Done(context);
  }
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext* context,
                                          const v1::DeleteSessionRequest*,
                                          v1::DeleteSessionResponse*) override {
    return Done(context);
  }
  grpc::ServerWriteReactor<v1::ChatResponse>* Chat(grpc::CallbackServerContext*,
                                                   const v1::ChatRequest* request) override {
    return new TokenStream<v1::ChatResponse, ChatMessages>({request->session_id()},
                                                           Tokens(request->sampling()));
  }

 private:
  static grpc::ServerUnaryReactor* Done(grpc::CallbackServerContext* context) {
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

// ------------------------------------------------------------------ relay

// A message is read when the one before is written.
class RelayedChat : public grpc::ServerWriteReactor<v1::ChatResponse>,
                    public grpc::ClientReadReactor<v1::ChatResponse> {
 public:
  RelayedChat(v1::ChatService::Stub& stub, grpc::CallbackServerContext* context,
              const v1::ChatRequest* request)
      : context_(grpc::ClientContext::FromCallbackServerContext(*context)) {
    stub.async()->Chat(context_.get(), request, this);
    AddHold();  // reads start in reactions of the server's side
    StartRead(&message_);
    StartCall();
  }

 private:
  void OnReadDone(bool ok) override {
    if (ok) {
      StartWrite(&message_);
    } else {
      RemoveHold();
    }
  }
  void OnWriteDone(bool ok) override {
    if (ok) return StartRead(&message_);
    context_->TryCancel();
    RemoveHold();
  }
  void OnDone(const grpc::Status& status) override {
    Finish(status);
    Release();
  }
  void OnDone() override { Release(); }
  void OnCancel() override { context_->TryCancel(); }
  void Release() {
    if (references_.fetch_sub(1) == 1) delete this;
  }

  const std::unique_ptr<grpc::ClientContext> context_;
  v1::ChatResponse message_;
  std::atomic<int> references_{2};
};

class ChatRelay : public v1::ChatService::CallbackService {
 public:
  explicit ChatRelay(const std::string& address)
      : stub_(v1::ChatService::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {}

  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext* context,
                                          const v1::CreateSessionRequest* request,
                                          v1::CreateSessionResponse* response) override {
    return Pass(context, [&](auto* call, auto done) {
      stub_->async()->CreateSession(call, request, response, done);
    });
  }
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext* context,
                                          const v1::DeleteSessionRequest* request,
                                          v1::DeleteSessionResponse* response) override {
    return Pass(context, [&](auto* call, auto done) {
      stub_->async()->DeleteSession(call, request, response, done);
    });
  }
  grpc::ServerWriteReactor<v1::ChatResponse>* Chat(grpc::CallbackServerContext* context,
                                                   const v1::ChatRequest* request) override {
    return new RelayedChat(*stub_, context, request);
  }

 private:
  template <typename Start>
  static grpc::ServerUnaryReactor* Pass(grpc::CallbackServerContext* context, Start start) {
    auto* reactor = context->DefaultReactor();
    auto* call = grpc::ClientContext::FromCallbackServerContext(*context).release();
    start(call, [reactor, call](const grpc::Status& status) {
      delete call;
      reactor->Finish(status);
    });
    return reactor;
  }

  const std::unique_ptr<v1::ChatService::Stub> stub_;
};

// ------------------------------------------------------------------ program

void WaitForSignal() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  int number = 0;
  sigwait(&signals, &number);
}

int Serve(FakeServer& server) {
  std::printf("%s\n", server.address().c_str());
  std::fflush(stdout);
  WaitForSignal();
  server.Stop();
  return 0;
}

int Main(int argc, char** argv) {
  sigset_t signals;  // before gRPC begins threads
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  const std::string_view kind = argc > 1 ? argv[1] : "";
  const char* argument = argc > 2 ? argv[2] : nullptr;
  if (kind == "vision") {
    FakeVision vision;
    vision.Set({.width = 64});
    return Serve(vision.server());
  }
  FakeModels models;
  models.Set({FakeLanguageModel("quick", 1)});
  QuickLlm llm;
  QuickChat chat;
  std::unique_ptr<ChatRelay> relay;
  std::vector<grpc::Service*> services;
  if (kind == "relay" && argument != nullptr) {
    relay = std::make_unique<ChatRelay>(argument);
    services = {relay.get()};
  } else if (kind == "llm" || kind == "chat") {
    if (argument != nullptr) pace = std::chrono::microseconds(std::atoll(argument));
    services = kind == "llm" ? std::vector<grpc::Service*>{&llm, &models}
                             : std::vector<grpc::Service*>{&chat};
  } else {
    std::fprintf(stderr,
                 "usage: llava_stand_ins llm [PACE] | vision | chat [PACE] | relay HOST:PORT "
                 "[CERTIFICATE KEY]\n");
    return 2;
  }
  auto credentials = grpc::InsecureServerCredentials();
  if (kind == "relay" && argc > 4) credentials = MakeServerCredentials({argv[3], argv[4], ""});
  FakeServer server(services, credentials);
  server.Start();
  return Serve(server);
}

}  // namespace
}  // namespace llava

namespace {

constexpr char kUsage[] =
    R"(Services that do no work, to measure what lies between them and a client.

  llava_stand_ins llm [PACE]         LlmService: answers at once with max_new_tokens tokens, each
                                     the reading of the steady clock in ns; PACE us apart
  llava_stand_ins vision             VisionService: small features at once
  llava_stand_ins chat [PACE]        ChatService that gives the answers of `llm` itself
  llava_stand_ins relay HOST:PORT [CERTIFICATE KEY]
                                     ChatService that passes each message on as it comes, and
                                     does nothing else: the least that a gateway of gRPC can
                                     cost; with PEM files it speaks TLS

Each listens on a free port of the loopback and prints it; SIGTERM ends it.
)";

}  // namespace

int main(int argc, char** argv) {
  if (llava::bench::PrintedUsage(argc, argv, kUsage)) return 0;
  return llava::Main(argc, argv);
}
