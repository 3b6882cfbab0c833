#include "tests/support/fake_backends.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sstream>
#include <stdexcept>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/digest/sha256.h"
#include "server/runtime/status.h"
#include "server/wire/feature_key.h"
#include "server/wire/tensor_stream.h"

namespace llava {
namespace {

std::vector<std::string> Words(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream stream(text);
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

uint32_t CountWords(const google::protobuf::RepeatedPtrField<v1::PromptMessage>& messages) {
  size_t words = 0;
  for (const auto& message : messages) words += Words(message.text()).size();
  return static_cast<uint32_t>(words);
}

uint32_t CountPictures(const google::protobuf::RepeatedPtrField<v1::PromptMessage>& messages) {
  int pictures = 0;
  for (const auto& message : messages) pictures += message.images_size();
  return static_cast<uint32_t>(pictures);
}

// False: the caller went away meanwhile.
bool Sleep(grpc::ServerContext* context, std::chrono::milliseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
    if (context->IsCancelled()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return !context->IsCancelled();
}

}  // namespace

FakeServer::FakeServer(std::vector<grpc::Service*> services,
                       std::shared_ptr<grpc::ServerCredentials> credentials)
    : services_(std::move(services)), credentials_(std::move(credentials)) {
  reservation_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int yes = 1;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (setsockopt(reservation_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
      bind(reservation_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      getsockname(reservation_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw std::runtime_error("fake server gets no port");
  }
  port_ = ntohs(address.sin_port);
}

FakeServer::~FakeServer() {
  Stop();
  close(reservation_);
}

void FakeServer::Start() {
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  builder.SetMaxReceiveMessageSize(64 << 20);
  builder.AddListeningPort(absl::StrCat("127.0.0.1:", port_), credentials_, &port_);
  for (grpc::Service* service : services_) builder.RegisterService(service);
  server_ = builder.BuildAndStart();
  if (!server_) throw std::runtime_error("fake server cannot listen");
}

void FakeServer::Stop() {
  if (!server_) return;
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
  server_.reset();
}

std::string FakeServer::address() const { return absl::StrCat("127.0.0.1:", port_); }

void Gate::Open() {
  std::lock_guard lock(mutex_);
  ++openings_;
}

int Gate::openings() const {
  std::lock_guard lock(mutex_);
  return openings_;
}

bool Gate::Await(grpc::ServerContext* context, int openings) const {
  while (this->openings() == openings) {
    if (!Sleep(context, std::chrono::milliseconds(2))) return false;
  }
  return !context->IsCancelled();
}

FakeVision::FakeVision() : server_({this, &models_}) {
  models_.Set({FakeTower()});
  server_.Start();
}

void FakeVision::Set(const Behaviour& behaviour) {
  std::lock_guard lock(mutex_);
  behaviour_ = behaviour;
}

v1::EncodeRequest FakeVision::last_request() const {
  std::lock_guard lock(mutex_);
  return last_request_;
}

int FakeVision::encodes() const {
  std::lock_guard lock(mutex_);
  return encodes_;
}

grpc::Status FakeVision::Encode(grpc::ServerContext* context, const v1::EncodeRequest* request,
                                grpc::ServerWriter<v1::EncodeResponse>* writer) {
  Behaviour behaviour;
  bool cached = false;
  const int openings = gate_.openings();
  {
    std::lock_guard lock(mutex_);
    ++encodes_;
    last_request_ = *request;
    behaviour = behaviour_;
    if (behaviour_.failures > 0) --behaviour_.failures;
    if (behaviour.failures == 0) cached = !seen_.insert(request->image()).second;
  }
  if (!Sleep(context, behaviour.delay)) return grpc::Status::CANCELLED;
  if (behaviour.pause && !gate_.Await(context, openings)) return grpc::Status::CANCELLED;
  if (behaviour.failures > 0) return behaviour.failure;
  const auto models = models_.Get();
  if (models.empty() || models[0].vision_spec().tower_digest() != request->spec().tower_digest()) {
    return {grpc::StatusCode::NOT_FOUND, "no such tower here"};
  }
  const std::string picture = behaviour.wrong_key ? "another" : request->image();
  const std::string bytes(static_cast<size_t>(2 * behaviour.width * 2), picture.back());
  v1::EncodeResponse response;
  auto& header = *response.mutable_header();
  *header.mutable_key() = MakeFeatureKey(HashBytes(picture), request->spec(), models[0].numerics());
  const std::vector<int64_t> shape = {2, behaviour.width};
  *header.mutable_tensor() = DescribeTensor(v1::DATA_TYPE_BFLOAT16, shape, bytes);
  header.set_cached(cached);
  // As a BMP says.
  const auto side = [&](size_t at) {
    return request->image().size() > at ? static_cast<uint8_t>(request->image()[at]) : 1u;
  };
  header.set_image_width(side(18));
  header.set_image_height(side(22));
  writer->Write(response);
  for (const auto& chunk : SplitChunks(bytes)) {
    response.set_chunk(std::string(chunk));
    if (!writer->Write(response)) return grpc::Status::CANCELLED;
    if (behaviour.hang_up) return {grpc::StatusCode::UNAVAILABLE, "connection reset"};
  }
  return grpc::Status::OK;
}

std::multiset<std::string> FakeVision::dropped() const {
  std::lock_guard lock(mutex_);
  return dropped_;
}

int FakeVision::drops() const {
  std::lock_guard lock(mutex_);
  return drops_;
}

grpc::Status FakeVision::DropFeatures(grpc::ServerContext* context,
                                      const v1::VisionServiceDropFeaturesRequest* request,
                                      v1::VisionServiceDropFeaturesResponse*) {
  bool pause = false;
  const int openings = gate_.openings();
  {
    std::lock_guard lock(mutex_);
    ++drops_;
    pause = behaviour_.pause_drops;
  }
  if (pause && !gate_.Await(context, openings)) return grpc::Status::CANCELLED;
  std::lock_guard lock(mutex_);
  for (const std::string& digest : request->image_sha256()) {
    dropped_.insert(absl::BytesToHexString(digest));
  }
  return grpc::Status::OK;
}

std::multiset<std::string> FakeLlm::dropped() const {
  std::lock_guard lock(mutex_);
  return dropped_;
}

std::multiset<std::string> FakeLlm::dropped_sessions() const {
  std::lock_guard lock(mutex_);
  return dropped_sessions_;
}

grpc::Status FakeLlm::DropFeatures(grpc::ServerContext*,
                                   const v1::LlmServiceDropFeaturesRequest* request,
                                   v1::LlmServiceDropFeaturesResponse*) {
  std::lock_guard lock(mutex_);
  dropped_sessions_.insert(request->session_ids().begin(), request->session_ids().end());
  for (const std::string& digest : request->image_sha256()) {
    dropped_.insert(absl::BytesToHexString(digest));
    std::erase_if(features_, [&](const auto& key) { return PictureOfKey(key) == digest; });
  }
  return grpc::Status::OK;
}

FakeLlm::FakeLlm() : server_({this, &models_}) {
  models_.Set({FakeLanguageModel("emoji", 1)});
  server_.Start();
}

void FakeLlm::Set(const Behaviour& behaviour) {
  std::lock_guard lock(mutex_);
  behaviour_ = behaviour;
}

void FakeLlm::ForgetFeatures() {
  std::lock_guard lock(mutex_);
  features_.clear();
}

v1::GenerateRequest FakeLlm::last_request() const {
  std::lock_guard lock(mutex_);
  return last_request_;
}

std::chrono::system_clock::time_point FakeLlm::last_deadline() const {
  std::lock_guard lock(mutex_);
  return last_deadline_;
}

v1::FeatureHeader FakeLlm::last_put() const {
  std::lock_guard lock(mutex_);
  return last_put_;
}

int FakeLlm::generates() const {
  std::lock_guard lock(mutex_);
  return generates_;
}

int FakeLlm::counts() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

int FakeLlm::puts() const {
  std::lock_guard lock(mutex_);
  return puts_;
}

bool FakeLlm::puts_apart() const {
  std::lock_guard lock(mutex_);
  return put_peer_ != generate_peer_;
}

int FakeLlm::cancelled() const {
  std::lock_guard lock(mutex_);
  return cancelled_;
}

FakeLlm::Behaviour FakeLlm::Record(grpc::ServerContext* context,
                                   const v1::GenerateRequest& request) {
  std::lock_guard lock(mutex_);
  ++generates_;
  last_request_ = request;
  last_deadline_ = context->deadline();
  generate_peer_ = context->peer();
  Behaviour behaviour = behaviour_;
  if (behaviour_.failures > 0) --behaviour_.failures;
  if (behaviour_.deaths > 0) {
    behaviour_.deaths -= behaviour_.fail_after_deltas >= 0 ? 1 : 0;
  } else {
    behaviour.fail_after_deltas = -1;
  }
  return behaviour;
}

grpc::Status FakeLlm::Refusal(const Behaviour& behaviour, const v1::GenerateRequest& request) {
  if (behaviour.failures > 0) return behaviour.failure;
  bool served = false;
  for (const auto& model : models_.Get()) {
    served |= model.model().name() == request.model().name() &&
              model.model().version() == request.model().version();
  }
  if (!served) {
    models_.ListServed();
    return {grpc::StatusCode::FAILED_PRECONDITION, "version is not served here"};
  }
  const uint32_t tokens = CountWords(request.messages());
  if (tokens > behaviour.context_tokens) {
    return {
        grpc::StatusCode::INVALID_ARGUMENT,
        absl::StrCat("the prompt has ", tokens, " tokens, the context ", behaviour.context_tokens)};
  }
  return WhatIsMissing(behaviour, request.messages());
}

grpc::Status FakeLlm::WhatIsMissing(
    const Behaviour& behaviour,
    const google::protobuf::RepeatedPtrField<v1::PromptMessage>& messages) const {
  v1::MissingFeatures missing;
  {
    std::lock_guard lock(mutex_);
    for (const auto& message : messages) {
      for (const auto& key : message.images()) {
        if (behaviour.forget_features || !features_.contains(FeatureKeyToBytes(key))) {
          *missing.add_keys() = key;
        }
      }
    }
  }
  if (missing.keys().empty()) return grpc::Status::OK;
  absl::Status status = absl::FailedPreconditionError("features are missing");
  AddDetail(status, missing);
  return ToGrpc(status);
}

grpc::Status FakeLlm::Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                               grpc::ServerWriter<v1::GenerateResponse>* writer) {
  const int openings = gate_.openings();
  const Behaviour behaviour = Record(context, *request);
  if (behaviour.failures > 0 && behaviour.arrives) writer->SendInitialMetadata();
  if (auto refusal = Refusal(behaviour, *request); !refusal.ok()) return refusal;

  v1::GenerateResponse response;
  auto& started = *response.mutable_started();
  *started.mutable_model() = request->model();
  for (const auto& model : models_.Get()) {
    if (model.model().name() == request->model().name() &&
        model.model().version() == request->model().version()) {
      *started.mutable_model() = model.model();
    }
  }
  if (behaviour.wrong_version) started.mutable_model()->set_version(99);
  started.set_text_tokens(CountWords(request->messages()));
  started.set_image_tokens(4 * CountPictures(request->messages()));
  started.set_cached_tokens(1);
  started.set_tokenizer_digest(std::string(32, 'k'));
  const v1::GenerateStarted prompt = started;
  writer->Write(response);

  const std::string answer = absl::StrCat(request->messages().rbegin()->text(),
                                          "! pictures: ", CountPictures(request->messages()),
                                          ", turns: ", (request->messages_size() + 1) / 2);
  std::string text;
  v1::TokenIds tokens;
  tokens.set_tokenizer_digest(std::string(32, 'k'));
  int deltas = 0;
  int told = request->continue_from().tokens().ids_size();
  for (const std::string& word : Words(answer)) {
    if (told-- > 0) {
      tokens.add_ids(static_cast<int32_t>(word.size()));
      text += absl::StrCat(text.empty() ? "" : " ", word);
      continue;
    }
    if (text.size() < request->continue_from().text_bytes_emitted()) {
      return {grpc::StatusCode::INVALID_ARGUMENT, "continue_from: ids and text do not fit"};
    }
    const bool pauses = deltas == behaviour.pause_after && deltas != behaviour.fail_after_deltas;
    if (!Sleep(context, behaviour.delay) || (pauses && !gate_.Await(context, openings))) {
      std::lock_guard lock(mutex_);
      ++cancelled_;
      return grpc::Status::CANCELLED;
    }
    if (deltas++ == behaviour.fail_after_deltas) return behaviour.failure;
    auto& delta = *response.mutable_delta();
    delta.Clear();
    delta.set_text_offset(text.size() + (behaviour.wrong_offset ? 1 : 0));
    delta.set_text(absl::StrCat(text.empty() ? "" : " ", word));
    delta.add_token_ids(static_cast<int32_t>(word.size()));
    tokens.add_ids(static_cast<int32_t>(word.size()));
    text += delta.text();
    if (request->sampling().has_logprobs()) delta.add_logprobs()->set_logprob(-0.5F);
    writer->Write(response);
  }
  auto& finished = *response.mutable_finished();
  finished.set_reason(v1::FINISH_REASON_STOP);
  finished.mutable_usage()->set_text_tokens(prompt.text_tokens());
  finished.mutable_usage()->set_image_tokens(prompt.image_tokens());
  finished.mutable_usage()->set_cached_tokens(prompt.cached_tokens());
  finished.mutable_usage()->set_generated_tokens(static_cast<uint32_t>(tokens.ids_size()));
  finished.mutable_timings()->set_prefill_seconds(0.25);
  *finished.mutable_tokens() = tokens;
  writer->Write(response);
  return grpc::Status::OK;
}

grpc::Status FakeLlm::PutFeatures(grpc::ServerContext* context,
                                  grpc::ServerReader<v1::PutFeaturesRequest>* reader,
                                  v1::PutFeaturesResponse* response) {
  v1::PutFeaturesRequest request;
  if (!reader->Read(&request) || !request.has_header()) {
    return {grpc::StatusCode::INVALID_ARGUMENT, "no header"};
  }
  const v1::FeatureHeader header = request.header();
  const std::string key = FeatureKeyToBytes(header.key());
  {
    std::lock_guard lock(mutex_);
    ++puts_;
    put_peer_ = context->peer();
    last_put_ = header;
    if (behaviour_.put_failures > 0) {
      --behaviour_.put_failures;
      return behaviour_.failure;
    }
    if (features_.contains(key)) {
      response->set_already_present(true);
      return grpc::Status::OK;  // before the chunks
    }
  }
  auto assembler = TensorAssembler::Create(header.tensor());
  absl::Status status = assembler.status();
  while (status.ok() && reader->Read(&request)) status = assembler->Add(request.chunk());
  if (status.ok()) status = std::move(*assembler).Finish().status();
  if (!status.ok()) return ToGrpc(status);
  std::lock_guard lock(mutex_);
  features_.insert(key);
  return grpc::Status::OK;
}

grpc::Status FakeLlm::CountTokens(grpc::ServerContext* context,
                                  const v1::CountTokensRequest* request,
                                  v1::CountTokensResponse* response) {
  Behaviour behaviour;
  const int openings = gate_.openings();
  {
    std::lock_guard lock(mutex_);
    ++counts_;
    behaviour = behaviour_;
  }
  if (behaviour.pause_counts && !gate_.Await(context, openings)) return grpc::Status::CANCELLED;
  if (behaviour.count_by_features) {
    const grpc::Status missing = WhatIsMissing(behaviour, request->messages());
    if (!missing.ok()) return missing;
  }
  response->set_text_tokens(CountWords(request->messages()));
  response->set_image_tokens(4 * CountPictures(request->messages()));
  response->set_context_tokens(4096);
  return grpc::Status::OK;
}

v1::ModelInfo FakeTower(char digest_letter) {
  v1::ModelInfo tower;
  tower.mutable_model()->set_name("tower");
  tower.mutable_model()->set_version(1);
  tower.set_kind(v1::MODEL_KIND_TOWER);
  tower.mutable_vision_spec()->set_tower_digest(std::string(32, digest_letter));
  tower.set_numerics("cpu-f32");
  return tower;
}

v1::ModelInfo FakeLanguageModel(const std::string& name, uint64_t version, char tower_letter) {
  v1::ModelInfo model;
  model.mutable_model()->set_name(name);
  model.mutable_model()->set_version(version);
  model.mutable_model()->set_digest(std::string(32, static_cast<char>('0' + version)));
  model.set_kind(v1::MODEL_KIND_LANGUAGE);
  auto& spec = *model.mutable_vision_spec();
  spec.set_tower_digest(std::string(32, tower_letter));
  spec.set_image_mode(v1::IMAGE_MODE_PAD);
  spec.set_select_layer(-2);
  spec.set_select_feature(v1::SELECT_FEATURE_PATCH);
  model.set_image_tokens(4);
  model.set_context_tokens(4096);
  model.set_constrains_output(true);
  return model;
}

}  // namespace llava
