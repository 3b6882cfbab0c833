#include "server/gateway/backend.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr std::chrono::milliseconds kPeriodUntilSettled{500};
constexpr std::chrono::seconds kAskTimeout{3};

// Channels with different arguments never share a connection; `purpose` makes them different.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address, const TlsFiles& tls,
                                           const std::string& purpose) {
  grpc::ChannelArguments arguments;
  arguments.SetString("llava.purpose", purpose);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A service that comes back is found again within about a second.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // Time for one attempt to connect, in spite of its name; a loaded machine needs some.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  // A machine that vanished without a word is noticed during an answer.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Retries are this gateway's decision (before the first token only).
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  return grpc::CreateCustomChannel(address, MakeChannelCredentials(tls), arguments);
}

bool SameModels(const std::vector<v1::ModelInfo>& a, const std::vector<v1::ModelInfo>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].SerializeAsString() != b[i].SerializeAsString()) return false;
  }
  return true;
}

}  // namespace

Backend::Backend(Names names, std::string address, GatewayMetrics& metrics, const TlsFiles& tls,
                 std::chrono::milliseconds period)
    : names_(std::move(names)),
      address_(std::move(address)),
      metrics_(metrics),
      period_(period),
      channel_(MakeChannel(address_, tls, "calls")),
      bulk_channel_(MakeChannel(address_, tls, "bulk")),
      models_(v1::ModelService::NewStub(channel_)) {
  metrics_.SetBackendUp(names_.service, false);
}

Backend::~Backend() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    if (asking_ != nullptr) asking_->TryCancel();
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
  MutexLock lock(mutex_);
  while (calls_ > 0) changed_.Wait(mutex_);
}

CallContext::CallContext(Backend& backend) : backend_(backend), context_(std::in_place) {
  MutexLock lock(backend_.mutex_);
  ++backend_.calls_;
}

CallContext::~CallContext() {
  context_.reset();
  MutexLock lock(backend_.mutex_);
  --backend_.calls_;
  backend_.changed_.NotifyAll();
}

void Backend::Start(std::function<void()> on_change) {
  on_change_ = std::move(on_change);
  thread_ = std::thread([this] { Loop(); });
}

ModelTable Backend::table() const {
  MutexLock lock(mutex_);
  return table_;
}

void Backend::Refresh(std::function<void()> done) {
  MutexLock lock(mutex_);
  wanted_ = true;
  if (done) waiting_.push_back(std::move(done));
  changed_.NotifyAll();
}

void Backend::Loop() {
  while (true) {
    std::vector<std::function<void()>> waiting;
    {
      MutexLock lock(mutex_);
      if (stopping_) return;
      wanted_ = false;
      waiting.swap(waiting_);
    }
    std::vector<v1::ModelInfo> models;
    const absl::Status status = Ask(&models);
    bool changed = false;
    {
      MutexLock lock(mutex_);
      changed = !asked_ || status.ok() != table_.status.ok() ||
                (status.ok() && !SameModels(models, table_.models));
      asked_ = true;
      table_.status = status;
      if (status.ok()) table_.models = std::move(models);
      if (stopping_) changed = false;
    }
    if (changed) {
      metrics_.SetBackendUp(names_.service, status.ok());
      if (status.ok()) {
        LogInfo("service found", {{"backend", names_.service}, {"address", address_}});
      } else {
        LogWarning("service lost", {{"backend", names_.service},
                                    {"address", address_},
                                    {"error", std::string(status.message())}});
      }
      on_change_();
    }
    for (const auto& done : waiting) done();

    MutexLock lock(mutex_);
    const bool settled = status.ok() && !table_.models.empty();  // else it is starting: look often
    const auto deadline = CondVar::Clock::now() + (settled ? period_ : kPeriodUntilSettled);
    while (!stopping_ && !wanted_ && changed_.WaitUntil(mutex_, deadline)) {
    }
  }
}

absl::Status Backend::Ask(std::vector<v1::ModelInfo>* models) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kAskTimeout);
  {
    MutexLock lock(mutex_);
    if (stopping_) return absl::CancelledError("stopping");
    asking_ = &context;
  }
  v1::ListModelsResponse response;
  const grpc::Status status = models_->ListModels(&context, {}, &response);
  {
    MutexLock lock(mutex_);
    asking_ = nullptr;
  }
  if (!status.ok()) return Unreachable(FromGrpc(status));
  models->assign(response.models().begin(), response.models().end());
  return absl::OkStatus();
}

absl::Status Backend::Unreachable(const absl::Status& status) const {
  return OverloadedError(absl::StrCat(names_.service, " service at ", address_,
                                      " is not reachable: ", status.message(), "; start ",
                                      names_.program, " or check ", names_.flag),
                         std::chrono::seconds(1));
}

absl::Status Backend::Explain(const absl::Status& status) {
  if (status.ok()) return status;
  metrics_.CountBackendError(names_.service, status.code());
  absl::StatusCode code = status.code();
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kDeadlineExceeded:
      return status;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled: {
      // The service itself says when to come back; without that it is the transport that speaks.
      google::rpc::RetryInfo retry;
      if (code == absl::StatusCode::kUnavailable && GetDetail(status, &retry)) break;
      Refresh();
      return Unreachable(status);
    }
    case absl::StatusCode::kUnknown:
      code = absl::StatusCode::kInternal;
      break;
    default:
      break;
  }
  absl::Status result(
      code, absl::StrCat(names_.service, " service at ", address_, ": ", status.message()));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { result.SetPayload(url, payload); });
  return result;
}

}  // namespace llava
