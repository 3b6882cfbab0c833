#include "server/gateway/picture_warmup.h"

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "server/gateway/feature_drops.h"

namespace llava {
namespace {

constexpr size_t kMostAtATime = 16;
constexpr std::chrono::seconds kTimeout{30};
// As the pictures of questions: a question waits for the warm-up of its picture, which must not
// wait for the pictures of all other questions.
constexpr int32_t kPriority = 0;

}  // namespace

void PictureWarmup::Begin(const std::string& session_id, const StoredImage& image) {
  Place place;
  {
    MutexLock lock(mutex_);
    if (stopped_ || jobs_.size() >= kMostAtATime) return;
    place = jobs_.emplace(jobs_.end());
  }
  place->session_id = session_id;
  place->image_id = image.info.id();
  place->prompt.AddUser("", {image});
  parts_.store.GetSession(session_id, [this, place](const absl::StatusOr<v1::Session>& session) {
    OnSession(place, session);
  });
}

void PictureWarmup::OnSession(Place place, const absl::StatusOr<v1::Session>& session) {
  if (!session.ok()) return End(place, session.status());
  const auto choice = ModelChoiceOf(*session);
  if (!choice.ok()) return End(place, choice.status());
  const auto route = parts_.router.Find(*choice, /*pictures=*/true);
  if (!route.ok()) return End(place, route.status());
  auto llm = parts_.router.PickLlm(*route, session->id());
  if (!llm.ok()) return End(place, llm.status());
  auto delivery = FeatureDelivery::Create(
      parts_, place->prompt, *route, *std::move(llm),
      {parts_.keys.Named(session->owner(), /*weight=*/1), "picture of " + session->id(), kPriority,
       std::chrono::system_clock::now() + kTimeout},
      [this, place](const absl::StatusOr<FeatureDelivery::Outcome>& outcome, const auto&) {
        OnDelivered(place, outcome.status());
      });
  {
    MutexLock lock(mutex_);
    place->delivery = delivery;
  }
  delivery->Start();
  bool stopped = false;
  {
    MutexLock lock(mutex_);
    stopped = stopped_;
  }
  if (stopped) delivery->Cancel();  // its end takes the lock
}

void PictureWarmup::OnDelivered(Place place, const absl::Status& status) {
  parts_.store.GetSession(place->session_id,
                          [this, place, status](const absl::StatusOr<v1::Session>& session) {
                            // Its deletion had the features dropped before they came. Where that
                            // cannot be told, they are computed once more.
                            if (!session.ok()) parts_.drops.Drop({place->image_id});
                            End(place, status);
                          });
}

void PictureWarmup::End(Place place, const absl::Status& status) {
  parts_.metrics.CountWarmup(status.ok());
  std::list<Job> ended;  // destroyed without the lock
  MutexLock lock(mutex_);
  ended.splice(ended.end(), jobs_, place);
  changed_.NotifyAll();
}

void PictureWarmup::Stop() {
  std::vector<std::shared_ptr<FeatureDelivery>> running;
  {
    MutexLock lock(mutex_);
    stopped_ = true;
    for (const Job& job : jobs_) {
      if (job.delivery) running.push_back(job.delivery);
    }
  }
  for (const auto& delivery : running) delivery->Cancel();
  running.clear();
  MutexLock lock(mutex_);
  while (!jobs_.empty()) changed_.Wait(mutex_);
}

}  // namespace llava
