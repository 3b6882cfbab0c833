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

}  // namespace

// A picture between Post and its features. `cache_key` is empty until the decoder has hashed it.
struct VisionEngine::Picture {
  EncodeJob job;
  std::string cache_key;
  Image size;                 // only width and height are kept
  std::vector<float> pixels;  // [3, S, S]
  Clock::time_point posted, decoded;
  EncodeTimes times;
};

VisionEngine::VisionEngine(Options options, LoadedTower tower, Metrics& metrics,
                           std::function<void(const std::string&)> on_all_failed)
    : options_(options),
      info_(std::move(tower.info)),
      on_all_failed_(std::move(on_all_failed)),
      counters_(std::make_unique<Counters>(metrics)),
      cache_(options.feature_cache_bytes, metrics),
      loading_(info_.workers) {
  counters_->ShowWorkers(loading_, 0, 0);
  for (int i = 0; i < info_.workers; ++i) {
    threads_.emplace_back([this, i, factory = tower.factory] { WorkerLoop(i, factory); });
  }
  for (int i = 0; i < options_.decode_threads; ++i) {
    threads_.emplace_back([this] { DecodeLoop(); });
  }
}

VisionEngine::~VisionEngine() { Stop(); }

void VisionEngine::Stop() {
  stopping_ = true;
  to_decode_.Close();
  to_encode_.Close();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

absl::Status VisionEngine::WaitUntilReady() {
  MutexLock lock(mutex_);
  while (loading_ > 0) changed_.Wait(mutex_);
  return load_status_;
}

absl::Status VisionEngine::Post(EncodeJob job) {
  // Calls that share a computation hold their request's memory too, however few pictures wait.
  if (waiting_.fetch_add(1) + static_cast<int>(cache_.followers()) >= options_.queue) {
    Leave(1);
    return OverloadedError(absl::StrCat("vision: ", options_.queue,
                                        " pictures are waiting already (--queue); try again"),
                           kRetryAfter);
  }
  counters_->queue_depth.Set(waiting_);
  const auto place = job.place;
  Picture picture;
  picture.job = std::move(job);
  picture.posted = Clock::now();
  if (to_decode_.Push(place, picture)) return absl::OkStatus();
  Leave(1);
  return OverloadedError("vision: the process is stopping", kRetryAfter);
}

void VisionEngine::Leave(int pictures) {
  waiting_ -= pictures;
  counters_->queue_depth.Set(waiting_);
}

void VisionEngine::DecodeLoop() {
  const auto any = [](const Picture&) { return 0; };
  while (true) {
    std::vector<Picture> next = to_decode_.PopBatch(1, std::chrono::seconds(0), any);
    if (next.empty()) return;
    Decode(std::move(next.front()));
  }
}

void VisionEngine::Decode(Picture picture) {
  const auto begin = Clock::now();
  EncodeCall& call = *picture.job.call;
  const absl::Status over =
      stopping_                 ? OverloadedError("vision: the process is stopping", kRetryAfter)
      : call.gone()             ? absl::CancelledError("the client is gone")
      : call.deadline() < begin ? absl::DeadlineExceededError("the deadline passed in the queue")
                                : absl::OkStatus();
  if (!over.ok()) {
    Leave(1);
    counters_->failed.Increment();
    return call.Failed(over);
  }
  picture.cache_key = absl::StrCat(ToBytes(HashBytes(picture.job.image)),
                                   ToBytes(picture.job.spec_digest), info_.numerics);
  const FeatureCache::Begun begun = cache_.Begin(picture.cache_key, picture.job.call);
  picture.times.queue_seconds = Seconds(begin - picture.posted);
  if (begun.features || !begun.leader) {
    Leave(1);
    if (!begun.features) return;  // the leader's end serves this call too
    counters_->cached.Increment();
    counters_->queue_seconds.Observe(picture.times.queue_seconds);
    return call.Done(begun.features, true, picture.times);
  }

  absl::Status status;
  try {
    const std::string& file = picture.job.image;
    const Image image =
        DecodeImage({reinterpret_cast<const uint8_t*>(file.data()), file.size()}, options_.limits);
    picture.size.width = image.width;
    picture.size.height = image.height;
    picture.pixels = NormalizePixels(FitToTower(image, picture.job.image_mode, info_.preprocess),
                                     info_.preprocess);
  } catch (...) {
    status = FromException(std::current_exception());
  }
  picture.decoded = Clock::now();
  picture.times.compute_seconds = Seconds(picture.decoded - begin);
  counters_->decode_seconds.Observe(picture.times.compute_seconds);
  picture.job.image = {};
  const auto place = picture.job.place;
  if (status.ok() && to_encode_.Push(place, picture)) return;
  if (status.ok()) status = OverloadedError("vision: the process is stopping", kRetryAfter);
  Leave(1);
  Fail(picture, status);
}

bool VisionEngine::Wanted(const Picture& picture) {
  FeatureCache::Pruned pruned = cache_.Prune(picture.cache_key, Clock::now());
  counters_->failed.Increment(static_cast<double>(pruned.gone.size() + pruned.expired.size()));
  for (const auto& call : pruned.gone) call->Failed(absl::CancelledError("the client is gone"));
  for (const auto& call : pruned.expired) {
    call->Failed(absl::DeadlineExceededError("the deadline passed before the picture's batch"));
  }
  return !pruned.ended;
}

void VisionEngine::WorkerLoop(int worker, const EncoderFactory& factory) {
  std::unique_ptr<PictureEncoder> encoder;
  absl::Status status;
  try {
    encoder = factory(worker);
    WarmUp(*encoder);
  } catch (...) {
    status = FromException(std::current_exception());
  }
  {
    MutexLock lock(mutex_);
    --loading_;
    ++(status.ok() ? ready_ : failed_);
    if (!status.ok()) load_status_ = status;
    counters_->ShowWorkers(loading_, ready_, failed_);
    changed_.NotifyAll();
  }
  if (!status.ok()) return;

  const auto group = [](const Picture& picture) {
    return std::pair(picture.job.select_layer, picture.job.select_feature);
  };
  while (true) {
    std::vector<Picture> batch =
        to_encode_.PopBatch(static_cast<size_t>(options_.max_batch), options_.batch_wait, group);
    if (batch.empty()) return;
    const int taken = static_cast<int>(batch.size());
    computing_ += taken;
    Leave(taken);
    const bool healthy = RunBatch(*encoder, batch);
    computing_ -= taken;
    if (healthy) continue;
    try {  // is it the batch, or the device?
      WarmUp(*encoder);
    } catch (...) {
      return WorkerFailed(absl::StrCat(FromException(std::current_exception()).message()));
    }
  }
}

bool VisionEngine::RunBatch(PictureEncoder& encoder, std::vector<Picture>& batch) {
  std::erase_if(batch, [this](const Picture& picture) {
    if (!stopping_) return !Wanted(picture);
    Fail(picture, OverloadedError("vision: the process is stopping", kRetryAfter));
    return true;
  });
  if (batch.empty()) return true;
  const auto begin = Clock::now();
  std::vector<std::vector<float>> pixels;
  for (Picture& picture : batch) {
    picture.times.queue_seconds += Seconds(begin - picture.decoded);
    counters_->queue_seconds.Observe(picture.times.queue_seconds);
    pixels.push_back(std::move(picture.pixels));
  }
  counters_->batch_size.Observe(static_cast<double>(batch.size()));
  const int64_t layer = batch.front().job.select_layer;
  const SelectFeature feature = batch.front().job.select_feature;
  std::vector<std::string> results(batch.size());
  std::vector<absl::Status> statuses(batch.size());
  bool healthy = true;
  try {
    results = encoder.Encode(pixels, layer, feature);
  } catch (...) {
    // One picture must not hurt another: each on its own, to find who can be served.
    healthy = false;
    for (size_t i = 0; i < batch.size(); ++i) {
      try {
        results[i] = encoder.Encode(std::span(pixels).subspan(i, 1), layer, feature).at(0);
      } catch (...) {
        statuses[i] = FromException(std::current_exception());
      }
    }
  }
  const double seconds = Seconds(Clock::now() - begin);
  counters_->compute_seconds.Observe(seconds);
  for (size_t i = 0; i < batch.size(); ++i) {
    batch[i].times.compute_seconds += seconds;
    if (statuses[i].ok() && HasNonFinite(results[i])) {
      statuses[i] = absl::InternalError("the tower gave numbers that are not finite");
    }
    if (statuses[i].ok()) {
      Complete(batch[i], std::move(results[i]));
    } else {
      Fail(batch[i], statuses[i]);
    }
  }
  return healthy;
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
  const FeatureCache::Calls calls = cache_.Finish(picture.cache_key, features);
  counters_->encoded.Increment(static_cast<double>(calls.size()));
  for (const auto& call : calls) call->Done(features, false, picture.times);
}

void VisionEngine::Fail(const Picture& picture, const absl::Status& status) {
  if (status.code() == absl::StatusCode::kInternal) {
    LogError("picture failed",
             {{"request_id", picture.job.request_id}, {"error", std::string(status.message())}});
  }
  const FeatureCache::Calls calls = cache_.Finish(picture.cache_key, nullptr);
  counters_->failed.Increment(static_cast<double>(calls.size()));
  for (const auto& call : calls) call->Failed(status);
}

void VisionEngine::WarmUp(PictureEncoder& encoder) const {
  const auto side = static_cast<size_t>(info_.preprocess.image_size);
  const std::vector<std::vector<float>> grey(1, std::vector<float>(3 * side * side, 0.0f));
  const auto parts = encoder.Encode(grey, info_.num_layers - 1, SelectFeature::kPatch);
  const size_t expected = static_cast<size_t>(info_.num_patches * info_.width) * 2;
  if (parts.size() != 1 || parts[0].size() != expected || HasNonFinite(parts[0])) {
    throw std::runtime_error("the tower's self-test gave a wrong or non-finite result");
  }
}

void VisionEngine::WorkerFailed(const std::string& reason) {
  LogError("worker died", {{"reason", reason}});
  bool last = false;
  {
    MutexLock lock(mutex_);
    --ready_;
    ++failed_;
    counters_->ShowWorkers(loading_, ready_, failed_);
    last = ready_ == 0;
  }
  if (!last) return;
  if (on_all_failed_) on_all_failed_("all workers failed: " + reason);
  // Nobody takes work any more: refuse what waits and what comes.
  stopping_ = true;
  to_decode_.Close();
  to_encode_.Close();
  while (true) {
    auto left = to_encode_.PopBatch(1, std::chrono::seconds(0), [](const Picture&) { return 0; });
    if (left.empty()) return;
    Leave(1);
    Fail(left.front(), absl::UnavailableError("vision: all workers failed"));
  }
}

}  // namespace llava
