#include "server/gateway/feature_delivery.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/digest/sha256.h"
#include "server/runtime/status.h"
#include "server/wire/feature_key.h"

namespace llava {
namespace {

// Pictures held in memory at once by one turn.
constexpr int kMaxUnderWay = 4;
// For a picture that the store could not read.
constexpr std::chrono::milliseconds kReadAgain{1000};

}  // namespace

std::map<std::string, v1::FeatureKey> FeatureKeys(const std::vector<std::string>& images,
                                                  const Route& route) {
  std::map<std::string, v1::FeatureKey> keys;
  for (const std::string& image : images) {
    keys[image] = MakeFeatureKey(FromHex(image), route.model.vision_spec(), route.numerics);
  }
  return keys;
}

std::shared_ptr<FeatureDelivery> FeatureDelivery::Create(const TurnParts& parts,
                                                         const Prompt& prompt, Route route,
                                                         std::shared_ptr<Backend> llm, Terms terms,
                                                         Done done) {
  return std::shared_ptr<FeatureDelivery>(new FeatureDelivery(
      parts, prompt, std::move(route), std::move(llm), std::move(terms), std::move(done)));
}

FeatureDelivery::FeatureDelivery(const TurnParts& parts, const Prompt& prompt, Route route,
                                 std::shared_ptr<Backend> llm, Terms terms, Done done)
    : parts_(parts),
      prompt_(prompt),
      route_(std::move(route)),
      llm_(std::move(llm)),
      terms_(std::move(terms)),
      done_(std::move(done)) {}

void FeatureDelivery::Start() {
  auto keys = FeatureKeys(prompt_.DistinctImages(), route_);
  {
    MutexLock lock(mutex_);
    for (const auto& [image, key] : keys) {
      if (llm_->features().Contains(key)) {
        parts_.metrics.feature_cache_hits.Increment();
      } else {
        parts_.metrics.feature_cache_misses.Increment();
        waiting_.push_back(image);
      }
    }
    outcome_.keys = std::move(keys);
  }
  Advance();
}

void FeatureDelivery::Cancel() { BreakOff(absl::CancelledError("cancelled")); }

void FeatureDelivery::BreakOff(const absl::Status& status) {
  std::vector<std::shared_ptr<FeatureTransfer>> transfers;
  std::map<std::string, uint64_t> tickets, room_tickets;
  {
    MutexLock lock(mutex_);
    if (!failure_.ok()) return;
    failure_ = status;
    tickets.swap(tickets_);
    room_tickets.swap(room_tickets_);
    for (const auto& [image, transfer] : transfers_) {
      if (transfer) transfers.push_back(transfer);  // one that just starts looks at failure_
    }
  }
  for (const auto& transfer : transfers) transfer->Cancel();
  for (const auto& [image, ticket] : tickets) {
    if (llm_->features().Abandon(ticket)) Settle(absl::OkStatus());
  }
  for (const auto& [image, ticket] : room_tickets) {
    if (parts_.transfers.Cancel(ticket)) Release(image, absl::OkStatus());
  }
}

void FeatureDelivery::Advance() {
  std::vector<std::string> next;
  Done done;
  absl::StatusOr<Outcome> result = absl::UnknownError("not run");
  std::shared_ptr<Backend> failed;
  {
    MutexLock lock(mutex_);
    if (!failure_.ok()) waiting_.clear();
    while (!waiting_.empty() && under_way_ < kMaxUnderWay) {
      next.push_back(std::move(waiting_.front()));
      waiting_.pop_front();
      ++under_way_;
    }
    if (under_way_ == 0 && done_) {
      done = std::exchange(done_, nullptr);
      if (computed_) {
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start_;
        outcome_.vision_seconds = took.count();
      }
      if (failure_.ok()) {
        result = std::move(outcome_);
      } else {
        result = failure_;
        failed = std::move(failed_);
      }
    }
  }
  for (const std::string& image : next) Bring(image);
  if (done) done(std::move(result), std::move(failed));
}

void FeatureDelivery::Bring(const std::string& image) {
  v1::FeatureKey key;
  bool failed = false;
  {
    MutexLock lock(mutex_);
    key = outcome_.keys.at(image);
    failed = !failure_.ok();
  }
  if (failed) return Settle(absl::OkStatus());
  uint64_t ticket = 0;
  // Whoever brings them may fail for reasons of its own: look again.
  const auto state = llm_->features().Claim(
      key, [self = shared_from_this(), image] { self->Bring(image); }, &ticket);
  switch (state) {
    case FeatureIndex::State::kThere:
      return Settle(absl::OkStatus());
    case FeatureIndex::State::kMissing:
      return AskForRoom(image);
    case FeatureIndex::State::kComing:
      break;
  }
  {
    MutexLock lock(mutex_);
    failed = !failure_.ok();
    computed_ = true;  // by another, but waited for
    // If they have come by now this ticket is stale, which does no harm; a later one may be there.
    if (!failed) tickets_[image] = std::max(tickets_[image], ticket);
  }
  if (failed && llm_->features().Abandon(ticket)) Settle(absl::OkStatus());
}

// The size of a stored picture is known when it is read: until then it is thought to be large.
void FeatureDelivery::AskForRoom(const std::string& image) {
  const auto own = prompt_.files.find(image);
  const uint64_t bytes =
      own == prompt_.files.end() ? parts_.options.max_image_bytes : own->second->size();
  const auto entered = std::make_shared<std::atomic<bool>>(false);
  const uint64_t ticket =
      parts_.transfers.Enter({.tenant = terms_.caller.name(),
                              .weight = terms_.caller.weight(),
                              .priority = terms_.priority},
                             bytes, [self = shared_from_this(), image, entered](Room room) {
                               *entered = true;
                               self->OnRoom(image, std::move(room));
                             });
  if (*entered) return;  // it may be over by now
  bool failed = false;
  {
    MutexLock lock(mutex_);
    failed = !failure_.ok();
    // If there is room by now this ticket is stale, which does no harm.
    if (!failed) room_tickets_[image] = ticket;
  }
  if (failed && parts_.transfers.Cancel(ticket)) Release(image, absl::OkStatus());
}

// With the end of a delivery the parts may go: its room goes first, and where no lock is held, as
// others begin then.
void FeatureDelivery::OnRoom(const std::string& image, Room room) {
  bool failed = false;
  {
    MutexLock lock(mutex_);
    failed = !failure_.ok();
    room_tickets_.erase(image);
  }
  if (failed) {
    room.reset();
    return Release(image, absl::OkStatus());
  }
  const auto own = prompt_.files.find(image);
  if (own != prompt_.files.end()) return Transfer(image, std::move(room), *own->second);
  parts_.store.ReadImage(image, [self = shared_from_this(), image, room = std::move(room)](
                                    absl::StatusOr<std::string> bytes) mutable {
    self->OnFile(image, std::move(room), std::move(bytes));
  });
}

void FeatureDelivery::OnFile(const std::string& image, Room room,
                             absl::StatusOr<std::string> bytes) {
  if (!bytes.ok()) {
    room.reset();
    // What is there but cannot be read now may be read later.
    const bool lost = absl::IsDataLoss(bytes.status()) || absl::IsNotFound(bytes.status());
    return Release(image, lost || absl::IsUnavailable(bytes.status())
                              ? bytes.status()
                              : OverloadedError(std::string(bytes.status().message()), kReadAgain));
  }
  room->Shrink(bytes->size());
  Transfer(image, std::move(room), *std::move(bytes));
}

void FeatureDelivery::Transfer(const std::string& image, Room room, std::string bytes) {
  const auto vision = parts_.router.PickVision(route_, image, terms_.except.get());
  if (!vision.ok()) {
    room.reset();
    return Release(image, vision.status());
  }
  v1::EncodeRequest request;
  request.set_image(std::move(bytes));
  *request.mutable_spec() = route_.model.vision_spec();
  request.set_request_id(terms_.request_id);
  request.set_tenant(terms_.caller.name());
  request.set_weight(terms_.caller.weight());
  request.set_priority(terms_.priority);
  v1::FeatureKey key;
  {
    MutexLock lock(mutex_);
    key = outcome_.keys.at(image);
    transfers_[image] = nullptr;
  }
  auto transfer = FeatureTransfer::Start(
      **vision, *llm_, std::move(request), std::move(key), terms_.deadline,
      [self = shared_from_this(), image, room = std::move(room), vision = *vision](
          absl::StatusOr<FeatureTransfer::Result> result, const Backend* failed) mutable {
        room.reset();
        self->OnTransfer(image, failed == vision.get() ? std::move(vision) : nullptr,
                         std::move(result));
      });
  bool cancel = false;
  {
    MutexLock lock(mutex_);
    const auto place = transfers_.find(image);
    if (place == transfers_.end()) return;  // it is over by now
    place->second = transfer;
    cancel = !failure_.ok();
  }
  if (cancel) transfer->Cancel();
}

void FeatureDelivery::OnTransfer(const std::string& image, std::shared_ptr<Backend> failed,
                                 absl::StatusOr<FeatureTransfer::Result> result) {
  if (result.ok()) llm_->features().Add(result->key);
  {
    MutexLock lock(mutex_);
    transfers_.erase(image);
    if (result.ok()) {
      outcome_.keys[image] = result->key;
      if (!result->cached) computed_ = true;
    } else if (failure_.ok() && absl::IsUnavailable(result.status())) {
      failed_ = std::move(failed);
    }
  }
  absl::Status status = result.status();
  if (status.code() == absl::StatusCode::kInvalidArgument) {
    status = absl::InvalidArgumentError(
        absl::StrCat("picture ", image.substr(0, 12), ": ", status.message()));
  }
  Release(image, status);
}

void FeatureDelivery::Release(const std::string& image, const absl::Status& status) {
  // The key that was claimed: the one that came may name another arithmetic.
  llm_->features().Release(FeatureKeys({image}, route_).at(image));
  Settle(status);
}

void FeatureDelivery::Settle(const absl::Status& status) {
  if (!status.ok()) BreakOff(status);
  {
    MutexLock lock(mutex_);
    --under_way_;
  }
  Advance();
}

}  // namespace llava
