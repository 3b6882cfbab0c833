#include "server/vision/engine.h"

#include <exception>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/image/decode.h"
#include "server/runtime/crc32c.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"
#include "server/vision/engine_counters.h"

namespace llava {
namespace {

constexpr std::chrono::milliseconds kRetryAfter{200};

double Seconds(EncodeCall::Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

// True if a value of the bfloat16 tensor is infinite or not a number (exponent all ones).
bool HasNonFinite(const std::string& bytes) {
  for (size_t i = 1; i < bytes.size(); i += 2) {
    const auto high = static_cast<uint8_t>(bytes[i]), low = static_cast<uint8_t>(bytes[i - 1]);
    if ((high & 0x7f) == 0x7f && (low & 0x80) != 0) return true;
  }
  return false;
}

absl::Status StoppingError() {
  return OverloadedError("vision: the tower is being taken away", kRetryAfter);
}

}  // namespace

// A picture between Post and its features.
struct VisionEngine::Picture {
  EncodeJob job;
  // Name of its features, from the decoder on; empty: the input is the caller's own tensor, whose
  // features nobody else asks for.
  std::string cache_key;
  Image size;                 // only width and height are kept
  std::vector<float> pixels;  // [3, S, S]
  Clock::time_point posted, decoded;
  double decode_seconds = 0;
  EncodeTimes times;
};

VisionEngine::VisionEngine(Options options, LoadedTower tower, FeatureCache& cache,
                           Metrics& metrics, int workers)
    : options_(std::move(options)),
      info_(std::move(tower.info)),
      cache_(cache),
      counters_(std::make_unique<Counters>(metrics)) {
  // Another preprocessing gives other features: they must not bear the same name.
  if (options_.decode.apply_exif) info_.numerics += "-exif";
  const WorkerPool::Options pool{.workers = info_.workers,
                                 .first_workers = workers,
                                 .respawn_delay = options_.respawn_delay,
                                 .respawns = options_.respawns};
  workers_ = std::make_unique<WorkerPool>(
      pool,
      WorkerPool::Parts{
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

VisionEngine::~VisionEngine() { Join(); }

void VisionEngine::Stop() {
  stopping_ = true;
  Join();
}

// Stage after stage, so that what one hands on is still taken by the next.
void VisionEngine::Join() {
  to_decode_.Close();
  for (std::thread& thread : decoders_) {
    if (thread.joinable()) thread.join();
  }
  to_encode_.Close();
  workers_->Drain();
  RefuseAll("the tower is being taken away");
}

absl::Status VisionEngine::ClosedError() const {
  const std::string why = failure();
  return why.empty() ? StoppingError() : OverloadedError("vision: " + why, kRetryAfter);
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
                           kRetryAfter);
  }
  for (size_t i = 0; i < jobs.size(); ++i) {
    const auto place = jobs[i].place;
    Picture picture;
    picture.posted = picture.decoded = Clock::now();
    picture.pixels = std::move(jobs[i].pixels);
    const bool decoded = !picture.pixels.empty();
    picture.job = std::move(jobs[i]);
    if ((decoded ? to_encode_ : to_decode_).Push(place, picture)) continue;
    if (i == 0) {
      Leave(count);
      return ClosedError();
    }
    Leave(1);  // closed between two jobs of a call: what was taken is answered, so is the rest
    picture.job.call->Failed(ClosedError());
  }
  return absl::OkStatus();
}

void VisionEngine::Enter(int pictures) {
  waiting_ += pictures;
  counters_->queue_depth.Increment(pictures);
}

void VisionEngine::Leave(int pictures) {
  waiting_ -= pictures;
  counters_->queue_depth.Decrement(pictures);
}

void VisionEngine::DecodeLoop() {
  while (auto next = to_decode_.Pop()) Decode(*std::move(next));
}

// Why work for a call should not begin.
absl::Status VisionEngine::Refusal(const EncodeCall& call) const {
  if (stopping_) return StoppingError();
  if (call.gone()) return absl::CancelledError("the client is gone");
  if (call.deadline() < Clock::now()) {
    return absl::DeadlineExceededError("the deadline passed in the queue");
  }
  return absl::OkStatus();
}

void VisionEngine::Decode(Picture picture) {
  const auto begin = Clock::now();
  EncodeCall& call = *picture.job.call;
  if (const absl::Status refusal = Refusal(call); !refusal.ok()) {
    Leave(1);
    CountFailures(1);
    return call.Failed(refusal);
  }
  picture.cache_key = absl::StrCat(ToBytes(HashBytes(picture.job.image)),
                                   ToBytes(picture.job.spec_digest), info_.numerics);
  const FeatureCache::Begun begun = cache_.Begin(picture.cache_key, picture.job.call);
  picture.times.queue_seconds = Seconds(begin - picture.posted);
  if (!begun.features && !begun.leader) return Leave(1);  // the leader's end serves this call too
  FeatureCache::Found found{begun.features, {picture.job.call}};
  if (!found.features) found = cache_.FinishFromDisk(picture.cache_key);
  if (found.features) {
    Leave(1);
    counters_->queue_seconds.Observe(picture.times.queue_seconds);
    return Answer(found.calls, found.features, true, picture.times);
  }

  absl::Status status;
  try {
    const std::string& file = picture.job.image;
    const Image image = DecodeImage({reinterpret_cast<const uint8_t*>(file.data()), file.size()},
                                    options_.limits, options_.decode);
    picture.size.width = image.width;
    picture.size.height = image.height;
    picture.pixels = NormalizePixels(FitToTower(image, picture.job.image_mode, info_.preprocess),
                                     info_.preprocess);
  } catch (...) {
    status = FromException(std::current_exception());
  }
  picture.decoded = Clock::now();
  picture.times.compute_seconds = picture.decode_seconds = Seconds(picture.decoded - begin);
  counters_->decode_seconds.Observe(picture.decode_seconds);
  picture.job.image = {};
  if (status.ok() && !Wanted(picture)) return Leave(1);
  const auto place = picture.job.place;
  if (status.ok() && to_encode_.Push(place, picture)) return;
  if (status.ok()) status = ClosedError();
  Leave(1);
  Fail(picture, status);
}

bool VisionEngine::Wanted(const Picture& picture) {
  if (picture.cache_key.empty()) {
    const absl::Status refusal = Refusal(*picture.job.call);
    if (!refusal.ok()) Fail(picture, refusal);
    return refusal.ok();
  }
  FeatureCache::Pruned pruned = cache_.Prune(picture.cache_key, Clock::now());
  CountFailures(pruned.gone.size() + pruned.expired.size());
  for (const auto& call : pruned.gone) call->Failed(absl::CancelledError("the client is gone"));
  for (const auto& call : pruned.expired) {
    call->Failed(absl::DeadlineExceededError("the deadline passed before the picture's batch"));
  }
  return !pruned.ended;
}

WorkerPool::Ended VisionEngine::Serve(PictureEncoder& encoder, const WorkerPool::Leave& leave) {
  const auto group = [](const Picture& picture) {
    return std::pair(picture.job.select_layer, picture.job.select_feature);
  };
  const BatchRule rule{
      .max_items = static_cast<size_t>(options_.max_batch),
      .max_wait = options_.batch_wait,
      .preferred = {options_.preferred_batches.begin(), options_.preferred_batches.end()}};
  WorkerPool::Ended ended;
  while (true) {
    std::vector<Picture> batch = to_encode_.PopBatch(rule, group, leave);
    if (batch.empty()) return ended;
    const int taken = static_cast<int>(batch.size());
    computing_ += taken;
    Leave(taken);
    ended.reason = RunBatch(encoder, batch);
    computing_ -= taken;
    if (!ended.reason.empty()) return ended;
    ended.served = true;
  }
}

std::string VisionEngine::RunBatch(PictureEncoder& encoder, std::vector<Picture>& batch) {
  std::erase_if(batch, [this](const Picture& picture) {
    if (!stopping_) return !Wanted(picture);
    Fail(picture, StoppingError());
    return true;
  });
  if (batch.empty()) return "";
  const auto begin = Clock::now();
  std::vector<std::vector<float>> pixels;
  for (Picture& picture : batch) {
    picture.times.queue_seconds += Seconds(begin - picture.decoded);
    counters_->queue_seconds.Observe(picture.times.queue_seconds);
    pixels.push_back(std::move(picture.pixels));
  }
  counters_->batch_size.Observe(static_cast<double>(batch.size()));
  std::vector<std::string> results(batch.size());
  std::vector<absl::Status> statuses = EncodeEach(encoder, batch, pixels, results);
  std::string lost;
  for (const absl::Status& status : statuses) {
    if (status.ok()) continue;
    try {  // is it the picture, or the device?
      WarmUp(encoder);
    } catch (...) {
      lost = FromException(std::current_exception()).ToString();
    }
    break;
  }
  const double seconds = Seconds(Clock::now() - begin);
  counters_->compute_seconds.Observe(seconds);
  statistics_.Update([&](EncodeStatistics& all) { all.batches[batch.size()].Add(seconds); });
  for (size_t i = 0; i < batch.size(); ++i) {
    batch[i].times.compute_seconds += seconds;
    absl::Status& status = statuses[i];
    if (!status.ok() && !lost.empty()) {
      status = OverloadedError("vision: the worker of this picture died", kRetryAfter);
    } else if (status.ok() && HasNonFinite(results[i])) {
      // A tensor of the caller's may hold numbers that no picture has: that says nothing of the
      // tower.
      const bool own = batch[i].cache_key.empty();
      const char* what = "the tower gave numbers that are not finite";
      status = own ? absl::InvalidArgumentError(what) : absl::InternalError(what);
      if (!own) statistics_.Update([](EncodeStatistics& all) { ++all.nan_outputs; });
    }
    if (status.ok()) {
      Complete(batch[i], std::move(results[i]));
    } else {
      Fail(batch[i], status);
    }
  }
  return lost;
}

// One picture must not hurt another, nor must the size of the batch: what fails together is tried
// each on its own.
std::vector<absl::Status> VisionEngine::EncodeEach(PictureEncoder& encoder,
                                                   const std::vector<Picture>& batch,
                                                   std::vector<std::vector<float>>& pixels,
                                                   std::vector<std::string>& results) const {
  const int64_t layer = batch.front().job.select_layer;
  const SelectFeature feature = batch.front().job.select_feature;
  std::vector<absl::Status> statuses(batch.size());
  try {
    results = encoder.Encode(pixels, layer, feature);
    return statuses;
  } catch (...) {
    statuses[0] = FromException(std::current_exception());
    if (batch.size() == 1) return statuses;
    LogWarning("a batch failed, its pictures are tried one by one",
               {{"pictures", absl::StrCat(batch.size())}, {"error", statuses[0].ToString()}});
  }
  for (size_t i = 0; i < batch.size(); ++i) {
    statuses[i] = absl::OkStatus();
    try {
      results[i] = encoder.Encode(std::span(pixels).subspan(i, 1), layer, feature).at(0);
    } catch (...) {
      statuses[i] = FromException(std::current_exception());
    }
  }
  return statuses;
}

void VisionEngine::Complete(Picture& picture, std::string bytes) {
  auto features = std::make_shared<Features>();
  features->crc32c = Crc32c(bytes);
  features->key = picture.cache_key;
  features->rows = info_.Rows(picture.job.select_feature);
  features->width = info_.width;
  features->image_width = static_cast<uint32_t>(picture.size.width);
  features->image_height = static_cast<uint32_t>(picture.size.height);
  features->bytes = std::move(bytes);
  statistics_.Update([&](EncodeStatistics& all) {
    ++all.encoded;
    all.queue.Add(picture.times.queue_seconds);
    all.decode.Add(picture.decode_seconds);
    all.compute.Add(picture.times.compute_seconds - picture.decode_seconds);
  });
  Answer(End(picture, features), features, false, picture.times);
}

FeatureCache::Calls VisionEngine::End(const Picture& picture,
                                      const std::shared_ptr<const Features>& features) {
  if (picture.cache_key.empty()) return {picture.job.call};
  return cache_.Finish(picture.cache_key, features);
}

void VisionEngine::Answer(const FeatureCache::Calls& calls,
                          const std::shared_ptr<const Features>& features, bool cached,
                          const EncodeTimes& times) {
  const double seconds = times.queue_seconds + times.compute_seconds;
  (cached ? counters_->cached : counters_->encoded).Increment(static_cast<double>(calls.size()));
  statistics_.Update([&](EncodeStatistics& all) {
    all.success.Add(seconds * static_cast<double>(calls.size()), calls.size());
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

void VisionEngine::WarmUp(PictureEncoder& encoder) const {
  const auto side = static_cast<size_t>(info_.preprocess.image_size);
  const std::vector<std::vector<float>> grey(1, std::vector<float>(3 * side * side, 0.0f));
  const auto parts = encoder.Encode(grey, info_.num_layers, SelectFeature::kPatch);
  const size_t expected = static_cast<size_t>(info_.num_patches * info_.width) * 2;
  if (parts.size() != 1 || parts[0].size() != expected || HasNonFinite(parts[0])) {
    throw std::invalid_argument("the tower gives wrong or non-finite numbers for a grey picture");
  }
}

// Nobody takes work any more: answers what waits, and Post refuses what comes.
void VisionEngine::RefuseAll(const std::string& reason) {
  to_decode_.Close();
  to_encode_.Close();
  while (auto left = to_encode_.Pop()) {
    Leave(1);
    Fail(*left, OverloadedError("vision: " + reason, kRetryAfter));
  }
}

}  // namespace llava
