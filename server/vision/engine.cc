#include "server/vision/engine.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/image/anyres.h"
#include "model/image/decode.h"
#include "server/runtime/logging.h"
#include "server/runtime/mutex.h"
#include "server/runtime/status.h"
#include "server/vision/engine_counters.h"
#include "server/vision/engine_picture.h"
#include "server/wire/tensor_stream.h"

namespace llava {
namespace {

// At the end of the process, when all calls have been cancelled: for what is under way in a device.
constexpr std::chrono::seconds kLastBatch{10};

// What the tower reads of a picture: itself, or an overview and tiles.
std::vector<std::vector<float>> Inputs(const Image& image, const EncodeJob& job,
                                       const PreprocessConfig& config) {
  if (job.grid.empty()) {
    return {NormalizePixels(FitToTower(image, job.image_mode, config), config)};
  }
  std::vector<std::vector<float>> inputs;
  for (const Image& tile : AnyresTiles(image, job.grid, config)) {
    inputs.push_back(NormalizePixels(tile, config));
  }
  return inputs;
}

}  // namespace

VisionEngine::VisionEngine(Options options, LoadedTower tower, FeatureCache& cache,
                           Metrics& metrics, int workers)
    : options_(std::move(options)),
      info_(std::move(tower.info)),
      cache_(cache),
      counters_(std::make_unique<Counters>(metrics)),
      budget_(options_.queue_bytes, counters_->queue_bytes) {
  // Another preprocessing gives other features: they must not bear the same name.
  if (options_.decode.apply_exif) info_.numerics += "-exif";
  const WorkerPool::Options pool{.workers = info_.workers,
                                 .first_workers = workers,
                                 .respawn_delay = options_.respawn_delay,
                                 .respawns = options_.respawns};
  workers_ = std::make_unique<WorkerPool>(
      pool,
      WorkerPool::Parts{
          .tower = ToHex(info_.digest),
          .device = info_.device,
          .factory = std::move(tower.factory),
          .check = [this](PictureEncoder& encoder) { WarmUp(encoder); },
          .serve = [this](PictureEncoder& encoder,
                          const WorkerPool::Leave& leave) { return Serve(encoder, leave); },
          .wake = [this] { to_encode_.Wake(); },
          .on_all_failed = [this](const std::string& reason) { RefuseAll(reason); }},
      metrics);
  for (int i = 0; i < options_.decode_threads; ++i) {
    decoders_.emplace_back([this] { DecodeLoop(); });
  }
}

VisionEngine::~VisionEngine() { Finish(); }

void VisionEngine::Finish() { Join(/*patient=*/true); }

bool VisionEngine::Stop() {
  stopping_ = true;
  return Join(/*patient=*/false);
}

// Stage after stage, so that what one hands on is still taken by the next.
bool VisionEngine::Join(bool patient) {
  to_decode_.Close();
  {
    MutexLock lock(join_mutex_);
    for (std::thread& thread : decoders_) {
      if (thread.joinable()) thread.join();
    }
  }
  to_encode_.Close();
  const std::string reason = "the tower is being taken away";
  bool hangs = false;
  if (!patient) {
    const auto until = CondVar::Clock::now() + kLastBatch;
    const auto has_calls = [](const Running& batch) { return !batch.pictures.empty(); };
    {
      MutexLock lock(running_mutex_);
      while (std::any_of(running_.begin(), running_.end(), has_calls) &&
             ran_.WaitUntil(running_mutex_, until)) {
      }
    }
    hangs = FailRunning(Clock::time_point::max(), reason);
    hangs |= !workers_->EndLoads(load_hangs_ ? CondVar::Clock::now() : until);
  }
  if (!hangs) workers_->Drain();
  RefuseAll(reason);
  return !hangs;
}

absl::Status VisionEngine::ClosedError() const {
  const std::string why = failure();
  return why.empty() ? EngineStoppingError() : OverloadedError("vision: " + why, kEngineRetryAfter);
}

absl::Status VisionEngine::Post(EncodeJob job) {
  std::vector<EncodeJob> jobs;
  jobs.push_back(std::move(job));
  return Post(std::move(jobs));
}

absl::Status VisionEngine::Post(std::vector<EncodeJob> jobs) {
  const int count = static_cast<int>(jobs.size());
  Enter(count);
  // Calls that share a computation hold their request's memory too, however few pictures wait.
  if (waiting_ + static_cast<int>(cache_.followers()) > options_.queue) {
    Leave(count);
    return OverloadedError(absl::StrCat("vision: ", options_.queue,
                                        " pictures are waiting already (--queue); try again"),
                           kEngineRetryAfter);
  }
  if (const absl::Status status = TakeBytes(jobs); !status.ok()) {
    Leave(count);
    return status;
  }
  for (size_t i = 0; i < jobs.size(); ++i) {
    const auto place = jobs[i].place;
    auto picture = std::make_shared<Picture>();
    picture->posted = picture->decoded = Clock::now();
    Tile whole{picture, 0, std::move(jobs[i].pixels)};
    picture->job = std::move(jobs[i]);
    const std::shared_ptr<EncodeCall> call = picture->job.call;
    const bool taken =
        whole.pixels.empty() ? to_decode_.Push(place, picture) : to_encode_.Push(place, whole);
    if (taken) continue;
    if (i == 0) {
      Leave(count);
      return ClosedError();
    }
    Leave(1);  // closed between two jobs of a call: what was taken is answered, so is the rest
    call->Failed(ClosedError());
  }
  return absl::OkStatus();
}

uint64_t VisionEngine::InputBytes() const {
  const auto side = static_cast<uint64_t>(info_.preprocess.image_size);
  return 3 * side * side * sizeof(float);
}

// The request and the copy that is worked on, and the tensors that will be made of a file.
uint64_t VisionEngine::BytesOf(const EncodeJob& job) const {
  if (!job.pixels.empty()) return 2 * InputBytes();
  uint64_t inputs = 1;
  for (const Resolution& canvas : job.grid) {
    inputs = std::max(inputs, static_cast<uint64_t>(NumTiles(canvas, info_.preprocess)));
  }
  return 2 * job.image.size() + inputs * InputBytes();
}

absl::Status VisionEngine::TakeBytes(const std::vector<EncodeJob>& jobs) {
  uint64_t bytes = 0;
  for (const EncodeJob& job : jobs) bytes += BytesOf(job);
  auto hold = budget_.Take(bytes);
  if (!hold) {
    return OverloadedError(
        absl::StrCat("vision: requests under way hold ", budget_.held(), " bytes, this one needs ",
                     bytes, " more, at most ", options_.queue_bytes,
                     " are allowed (--queue-bytes); try again"),
        kEngineRetryAfter);
  }
  for (const EncodeJob& job : jobs) job.call->held = hold->Split(BytesOf(job));
  return absl::OkStatus();
}

void VisionEngine::Enter(int count) {
  waiting_ += count;
  counters_->queue_depth.Increment(count);
}

void VisionEngine::Leave(int count) {
  waiting_ -= count;
  counters_->queue_depth.Decrement(count);
}

void VisionEngine::DecodeLoop() {
  while (auto next = to_decode_.Pop()) Decode(*next);
}

// Why work for a call should not begin.
absl::Status VisionEngine::Refusal(const EncodeCall& call) const {
  if (stopping_) return EngineStoppingError();
  if (call.gone()) return absl::CancelledError("the client is gone");
  if (call.deadline() < Clock::now()) {
    return absl::DeadlineExceededError("the deadline passed in the queue");
  }
  return absl::OkStatus();
}

void VisionEngine::Decode(const std::shared_ptr<Picture>& picture) {
  const auto begin = Clock::now();
  EncodeJob& job = picture->job;
  EncodeCall& call = *job.call;
  if (const absl::Status refusal = Refusal(call); !refusal.ok()) {
    Leave(1);
    CountFailures(1);
    return call.Failed(refusal);
  }
  const uint64_t request_bytes = job.image.size();
  picture->cache_key =
      absl::StrCat(ToBytes(HashBytes(job.image)), ToBytes(job.spec_digest), info_.numerics);
  const FeatureCache::Begun begun = cache_.Begin(picture->cache_key, job.call);
  EncodeTimes times;
  times.queue_seconds = Seconds(begin - picture->posted);
  if (!begun.features && !begun.leader) {
    // The leader's end serves this call too: of the features it will hold a chunk at a time.
    call.held.ShrinkTo(request_bytes + std::min<uint64_t>(InputBytes(), kMaxChunkBytes));
    return Leave(1);
  }
  FeatureCache::Found found{begun.features, {job.call}};
  if (!found.features) found = cache_.FinishFromDisk(picture->cache_key);
  if (found.features) {
    Leave(1);
    counters_->queue_seconds.Observe(times.queue_seconds);
    return Answer(found.calls, found.features, true, times);
  }

  absl::Status status;
  std::vector<std::vector<float>> inputs;
  try {
    const Image image =
        DecodeImage({reinterpret_cast<const uint8_t*>(job.image.data()), job.image.size()},
                    options_.limits, options_.decode);
    picture->size = {image.width, image.height};
    inputs = Inputs(image, job, info_.preprocess);
  } catch (...) {
    status = FromException(std::current_exception());
  }
  picture->decoded = Clock::now();
  picture->decode_seconds = Seconds(picture->decoded - begin);
  times.compute_seconds = picture->decode_seconds;
  {
    MutexLock lock(picture->mutex);
    picture->times = times;
  }
  counters_->decode_seconds.Observe(picture->decode_seconds);
  job.image = {};
  call.held.ShrinkTo(request_bytes + inputs.size() * InputBytes());
  if (status.ok() && !Wanted(*picture)) return Leave(1);
  if (status.ok()) return PostTiles(picture, std::move(inputs));
  Leave(1);
  Fail(*picture, status);
}

void VisionEngine::PostTiles(const std::shared_ptr<Picture>& picture,
                             std::vector<std::vector<float>> inputs) {
  {
    MutexLock lock(picture->mutex);
    picture->tiles_left = inputs.size();
    picture->features.resize(inputs.size());
  }
  Enter(static_cast<int>(inputs.size()) - 1);  // what was one is many now
  for (size_t i = 0; i < inputs.size(); ++i) {
    Tile tile{picture, i, std::move(inputs[i])};
    if (to_encode_.Push(picture->job.place, tile)) continue;
    Leave(1);
    EndTile(tile, ClosedError());
  }
}

bool VisionEngine::Wanted(Picture& picture) {
  absl::Status refusal;
  FeatureCache::Pruned pruned;
  bool wanted = false;
  {
    MutexLock lock(picture.mutex);
    if (picture.over) return false;
    if (picture.cache_key.empty()) {
      refusal = Refusal(*picture.job.call);
      picture.over = !refusal.ok();
    } else {
      pruned = cache_.Prune(picture.cache_key, Clock::now());
      picture.over = pruned.ended;
    }
    wanted = !picture.over;
  }
  if (!refusal.ok()) Fail(picture, refusal);
  CountFailures(pruned.gone.size() + pruned.expired.size());
  for (const auto& call : pruned.gone) call->Failed(absl::CancelledError("the client is gone"));
  for (const auto& call : pruned.expired) {
    call->Failed(absl::DeadlineExceededError("the deadline passed before the picture's batch"));
  }
  return wanted;
}

FeatureCache::Calls VisionEngine::End(const Picture& picture,
                                      const std::shared_ptr<const Features>& features) {
  if (picture.cache_key.empty()) return {picture.job.call};
  return cache_.Finish(picture.cache_key, features);
}

void VisionEngine::Answer(const FeatureCache::Calls& calls,
                          const std::shared_ptr<const Features>& features, bool cached,
                          const EncodeTimes& times) {
  const double seconds =
      (times.queue_seconds + times.compute_seconds) * static_cast<double>(calls.size());
  (cached ? counters_->cached : counters_->encoded).Increment(static_cast<double>(calls.size()));
  statistics_.Update([&](EncodeStatistics& all) {
    all.success.Add(seconds, calls.size());
    (cached ? all.cache_hit : all.cache_miss).Add(seconds, calls.size());
    all.last_request = std::chrono::system_clock::now();
  });
  for (const auto& call : calls) call->Done(features, cached, times);
}

void VisionEngine::Fail(const Picture& picture, const absl::Status& status) {
  if (status.code() == absl::StatusCode::kInternal) {
    LogError("picture failed",
             {{"request_id", picture.job.request_id}, {"error", std::string(status.message())}});
  }
  const FeatureCache::Calls calls = End(picture, nullptr);
  CountFailures(calls.size());
  for (const auto& call : calls) call->Failed(status);
}

void VisionEngine::CountFailures(size_t calls) {
  if (calls == 0) return;
  counters_->failed.Increment(static_cast<double>(calls));
  statistics_.Update([&](EncodeStatistics& all) {
    all.failure.Add(0, calls);
    all.last_request = std::chrono::system_clock::now();
  });
}

// Nobody takes work any more: answers what waits, and Post refuses what comes.
void VisionEngine::RefuseAll(const std::string& reason) {
  to_decode_.Close();
  to_encode_.Close();
  while (auto left = to_encode_.Pop()) {
    Leave(1);
    EndTile(*left, OverloadedError("vision: " + reason, kEngineRetryAfter));
  }
}

}  // namespace llava
