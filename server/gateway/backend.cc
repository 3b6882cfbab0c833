#include "server/gateway/backend.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/rpc/error_details.pb.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr std::chrono::seconds kAskTimeout{3};
constexpr int kFailuresInARow = 5;
constexpr std::chrono::seconds kFirstEjection{10}, kLongestEjection{300};
constexpr std::chrono::milliseconds kLongestPatience{5000};

// Each channel has a connection of its own.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address, const TlsFiles& tls,
                                           const std::string& authority) {
  grpc::ChannelArguments arguments;
  if (!authority.empty()) arguments.SetString(GRPC_ARG_DEFAULT_AUTHORITY, authority);
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

// "emoji 3 (stable), emoji 4"
std::string DescribeModels(const std::vector<v1::ModelInfo>& models) {
  std::vector<std::string> words;
  for (const v1::ModelInfo& each : models) {
    words.push_back(absl::StrCat(each.model().name(), " ", each.model().version()));
    if (!each.labels().empty()) {
      absl::StrAppend(&words.back(), " (", absl::StrJoin(each.labels(), ", "), ")");
    }
  }
  return absl::StrJoin(words, ", ");
}

}  // namespace

bool IsVersionGone(const absl::Status& status) {
  if (absl::IsNotFound(status)) return true;
  v1::MissingFeatures missing;
  return absl::IsFailedPrecondition(status) && !GetDetail(status, &missing);
}

Backend::Backend(Names names, std::string address, GatewayMetrics& metrics, const TlsFiles& tls,
                 std::chrono::milliseconds period, std::string authority)
    : names_(std::move(names)),
      address_(std::move(address)),
      authority_(std::move(authority)),
      metrics_(metrics),
      period_(period),
      channel_(MakeChannel(address_, tls, authority_)),
      models_(v1::ModelService::NewStub(channel_)),
      encoder_(v1::VisionService::NewStub(channel_)),
      generator_(v1::LlmService::NewStub(channel_)),
      receiver_(v1::LlmService::NewStub(MakeChannel(address_, tls, authority_))) {
  table_.status = OverloadedError(
      absl::StrCat(names_.service, " service at ", address_, " has not been asked yet"),
      std::chrono::seconds(1));
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

void Backend::Acquire() {
  MutexLock lock(mutex_);
  ++calls_;
}

void Backend::Release() {
  MutexLock lock(mutex_);
  --calls_;
  changed_.NotifyAll();
}

std::shared_ptr<Backend> Backend::Lease() {
  Acquire();
  return {this, [](Backend* backend) { backend->Release(); }};
}

bool Backend::idle() const {
  MutexLock lock(mutex_);
  return calls_ == 0;
}

CallContext::CallContext(Backend& backend) : backend_(backend), context_(std::in_place) {
  backend_.Acquire();
}

CallContext::~CallContext() {
  context_.reset();
  backend_.Release();
}

void Backend::Start(std::function<void()> on_change) {
  on_change_ = std::move(on_change);
  thread_ = std::thread([this] { Loop(); });
}

ModelTable Backend::table() const {
  MutexLock lock(mutex_);
  return table_;
}

bool Backend::up() const {
  MutexLock lock(mutex_);
  return table_.status.ok();
}

bool Backend::heard() const {
  MutexLock lock(mutex_);
  return heard_;
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
    const absl::StatusOr<v1::ListModelsResponse> list = Ask();
    const absl::Status& status = list.status();
    std::vector<v1::ModelInfo> models, coming;
    if (list.ok()) {
      models.assign(list->models().begin(), list->models().end());
      coming.assign(list->coming().begin(), list->coming().end());
    }
    bool changed = false, tell = false, found = false;
    {
      MutexLock lock(mutex_);
      found = !asked_ || !table_.status.ok();
      changed = !asked_ || status.ok() != table_.status.ok() ||
                (status.ok() && !SameModels(models, table_.models));
      tell = changed || (status.ok() && !SameModels(coming, table_.away));
      asked_ = true;
      table_.status = status;
      if (status.ok()) {
        heard_ = true;
        table_.models = models;
        table_.away_status = WhenLoaded(coming);
        table_.away = std::move(coming);
      }
      if (stopping_) changed = tell = false;
    }
    if (changed) {
      if (status.ok()) {
        LogInfo(found ? "service found" : "service serves other models",
                {{"backend", names_.service},
                 {"address", address_},
                 {"models", DescribeModels(models)}});
      } else {
        LogWarning("service lost", {{"backend", names_.service},
                                    {"address", address_},
                                    {"error", std::string(status.message())}});
      }
    }
    if (tell) on_change_();
    for (const auto& done : waiting) done();

    MutexLock lock(mutex_);
    const auto deadline = CondVar::Clock::now() + period_;
    while (!stopping_ && !wanted_ && changed_.WaitUntil(mutex_, deadline)) {
    }
  }
}

absl::StatusOr<v1::ListModelsResponse> Backend::Ask() {
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
  return response;
}

absl::Status Backend::WhenLoaded(const std::vector<v1::ModelInfo>& coming) const {
  if (coming.empty()) return absl::OkStatus();
  return OverloadedError(absl::StrCat(names_.service, " service at ", address_, " is loading ",
                                      DescribeModels(coming), "; try again"),
                         std::chrono::seconds(1));
}

absl::Status Backend::Unreachable(const absl::Status& status) const {
  absl::Status result =
      OverloadedError(absl::StrCat(names_.service, " service at ", address_,
                                   " is not reachable: ", status.message(), "; start ",
                                   names_.program, " or check ", names_.flag),
                      std::chrono::seconds(1));
  google::rpc::ErrorInfo info;  // tells it from a service that has too much to do
  info.set_reason("UNREACHABLE");
  info.set_domain("llava");
  (*info.mutable_metadata())["service"] = names_.service;
  AddDetail(result, info);
  return result;
}

void Backend::Report(const absl::Status& status) {
  const auto patience = absl::IsUnavailable(status) ? RetryAfter(status) : std::nullopt;
  const bool failed = !patience && (absl::IsUnavailable(status) || absl::IsInternal(status) ||
                                    absl::IsUnknown(status) || absl::IsDataLoss(status));
  std::chrono::seconds ejected{0};
  {
    MutexLock lock(mutex_);
    const auto now = CondVar::Clock::now();
    if (status.ok()) {
      failures_ = ejections_ = 0;
      unwilling_until_ = {};
    } else if (patience) {
      unwilling_until_ = std::max(unwilling_until_, now + std::min(*patience, kLongestPatience));
    } else if (failed && ++failures_ >= kFailuresInARow) {
      failures_ = 0;
      ejected = std::min(kFirstEjection * ++ejections_, kLongestEjection);
      unwilling_until_ = now + ejected;
    }
  }
  if (ejected.count() == 0) return;
  metrics_.CountEjection(names_.service);
  LogWarning("service ejected: its calls fail", {{"backend", names_.service},
                                                 {"address", address_},
                                                 {"seconds", absl::StrCat(ejected.count())},
                                                 {"error", std::string(status.message())}});
}

bool Backend::willing() const {
  MutexLock lock(mutex_);
  return CondVar::Clock::now() >= unwilling_until_;
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
    case absl::StatusCode::kCancelled:
      // The service itself says when to come back; without that it is the transport that speaks.
      if (code == absl::StatusCode::kUnavailable && RetryAfter(status)) break;
      Refresh();
      return Unreachable(status);
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
