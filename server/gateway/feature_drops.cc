#include "server/gateway/feature_drops.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "server/runtime/logging.h"
#include "server/runtime/status.h"
#include "server/wire/feature_key.h"

namespace llava {
namespace {

constexpr std::chrono::seconds kTimeout{10};
// How often is looked who is behind, or new.
constexpr std::chrono::milliseconds kPeriod{500};
// One whose disk hangs must not keep the others from hearing.
constexpr std::chrono::milliseconds kLongPatience{30'000};

}  // namespace

FeatureDrops::FeatureDrops(const BackendPool& vision, const BackendPool& llm,
                           FeatureDropBounds bounds)
    : vision_(vision), llm_(llm), bounds_(bounds), thread_([this] { Loop(); }) {}

FeatureDrops::~FeatureDrops() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    if (calling_ != nullptr) calling_->TryCancel();
    changed_.NotifyAll();
  }
  thread_.join();
}

void FeatureDrops::Drop(const std::vector<std::string>& pictures,
                        const std::vector<std::string>& sessions) {
  if (pictures.empty() && sessions.empty()) return;
  MutexLock lock(mutex_);
  for (const std::string& id : pictures) last_.emplace_back(FromHex(id));
  for (const std::string& id : sessions) last_.emplace_back(id);
  dropped_ += pictures.size() + sessions.size();
  while (last_.size() > bounds_.waiting) last_.pop_front();
  changed_.NotifyAll();
}

size_t FeatureDrops::kept() const {
  MutexLock lock(mutex_);
  return last_.size();
}

void FeatureDrops::Loop() {
  while (true) {
    {
      MutexLock lock(mutex_);
      while (!stopping_ && last_.empty()) changed_.Wait(mutex_);
      if (stopping_) return;
    }
    std::map<Name, Told> told;  // of those that are there now
    uint64_t known_to_all = UINT64_MAX;
    for (const bool encodes : {true, false}) {
      for (const auto& backend : (encodes ? vision_ : llm_).all()) {
        Told& state = told[{encodes, backend->address()}];
        state = told_[{encodes, backend->address()}];
        while (Tell(*backend, encodes, state)) {
        }
        known_to_all = std::min(known_to_all, state.dropped);
      }
    }
    told_ = std::move(told);
    MutexLock lock(mutex_);
    while (last_.size() > bounds_.for_later && dropped_ - last_.size() < known_to_all) {
      last_.pop_front();
    }
    const uint64_t seen = dropped_;
    const auto until = Clock::now() + kPeriod;
    while (!stopping_ && dropped_ == seen && changed_.WaitUntil(mutex_, until)) {
    }
  }
}

bool FeatureDrops::Tell(Backend& backend, bool encodes, Told& told) {
  if (!backend.up() || Clock::now() < told.again) return false;
  std::vector<Dropped> all;
  {
    MutexLock lock(mutex_);
    if (stopping_) return false;
    told.dropped = std::max(told.dropped, dropped_ - last_.size());
    const auto begin = last_.end() - static_cast<std::ptrdiff_t>(dropped_ - told.dropped);
    const auto count = std::min<uint64_t>(dropped_ - told.dropped, kMostDropped);
    all.assign(begin, begin + static_cast<std::ptrdiff_t>(count));
  }
  if (all.empty()) return false;
  const absl::Status status = Call(backend, encodes, all);
  const bool is_new = !std::exchange(told.failed, !status.ok());
  if (!status.ok() && is_new) {
    LogWarning("what was made of deleted sessions is still there",
               {{"backend", backend.Describe()}, {"error", std::string(status.message())}});
  }
  if (status.ok() || absl::IsUnimplemented(status)) {  // an older service never will
    told.dropped += all.size();
    return true;
  }
  told.again = Clock::now() + (absl::IsDeadlineExceeded(status) ? kLongPatience : kPeriod);
  return false;
}

absl::Status FeatureDrops::Call(Backend& backend, bool encodes, const std::vector<Dropped>& all) {
  v1::VisionServiceDropFeaturesRequest to_vision;
  v1::LlmServiceDropFeaturesRequest to_llm;
  for (const Dropped& dropped : all) {
    if (const auto* session = std::get_if<std::string>(&dropped)) {
      to_llm.add_session_ids(*session);
    } else {
      const std::string digest = ToBytes(std::get<Sha256Digest>(dropped));
      to_llm.add_image_sha256(digest);
      to_vision.add_image_sha256(digest);
    }
  }
  if (encodes && to_vision.image_sha256().empty()) return absl::OkStatus();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kTimeout);
  {
    MutexLock lock(mutex_);
    if (stopping_) return absl::CancelledError("stopping");
    calling_ = &context;
  }
  grpc::Status status;
  if (encodes) {
    v1::VisionServiceDropFeaturesResponse response;
    status = backend.encoder().DropFeatures(&context, to_vision, &response);
  } else {
    v1::LlmServiceDropFeaturesResponse response;
    status = backend.generator().DropFeatures(&context, to_llm, &response);
  }
  MutexLock lock(mutex_);
  calling_ = nullptr;
  return FromGrpc(status);
}

}  // namespace llava
