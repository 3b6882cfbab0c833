// The workers' side of the engine: batches through the tower.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <iterator>
#include <span>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/runtime/crc32c.h"
#include "server/runtime/logging.h"
#include "server/runtime/mutex.h"
#include "server/runtime/status.h"
#include "server/vision/engine.h"
#include "server/vision/engine_counters.h"
#include "server/vision/engine_picture.h"

namespace llava {
namespace {

// True if a value of the bfloat16 tensor is infinite or not a number (exponent all ones).
bool HasNonFinite(const std::string& bytes) {
  constexpr unsigned kExponent = 0x7f80;
  unsigned found = 0;  // without a branch, so that the compiler takes many values at once
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    uint16_t value;
    std::memcpy(&value, &bytes[i], sizeof(value));
    found |= (value & kExponent) == kExponent ? 1u : 0u;
  }
  return found != 0;
}

}  // namespace

WorkerPool::Ended VisionEngine::Serve(PictureEncoder& encoder, const WorkerPool::Leave& leave) {
  const auto group = [](const Tile& tile) {
    return std::pair(tile.picture->job.select_layer, tile.picture->job.select_feature);
  };
  const BatchRule rule{
      .max_items = static_cast<size_t>(options_.max_batch),
      .max_wait = options_.batch_wait,
      .preferred = {options_.preferred_batches.begin(), options_.preferred_batches.end()}};
  WorkerPool::Ended ended;
  while (true) {
    std::vector<Tile> batch = to_encode_.PopBatch(rule, group, leave);
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

std::string VisionEngine::RunBatch(PictureEncoder& encoder, std::vector<Tile>& batch) {
  std::erase_if(batch, [this](const Tile& tile) {
    if (!stopping_) return !Wanted(*tile.picture);
    EndTile(tile, EngineStoppingError());
    return true;
  });
  if (batch.empty()) return "";
  const auto begin = Clock::now();
  std::vector<std::vector<float>> pixels;
  for (Tile& tile : batch) {
    pixels.push_back(std::move(tile.pixels));
    Picture& picture = *tile.picture;
    MutexLock lock(picture.mutex);
    if (std::exchange(picture.begun, true)) continue;
    picture.first_batch = begin;
    picture.times.queue_seconds += Seconds(begin - picture.decoded);
    counters_->queue_seconds.Observe(picture.times.queue_seconds);
  }
  counters_->batch_size.Observe(static_cast<double>(batch.size()));
  std::list<Running>::iterator running;
  {
    MutexLock lock(running_mutex_);
    running = running_.insert(running_.end(), {begin, {}});
    for (const Tile& tile : batch) running->pictures.push_back(tile.picture);
  }
  std::vector<std::string> results(batch.size());
  std::vector<absl::Status> statuses =
      EncodeEach(encoder, batch.front().picture->job, pixels, results);
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
  {
    MutexLock lock(running_mutex_);
    running_.erase(running);
    ran_.NotifyAll();
  }
  const double seconds = Seconds(Clock::now() - begin);
  counters_->compute_seconds.Observe(seconds);
  statistics_.Update([&](EncodeStatistics& all) { all.batches[batch.size()].Add(seconds); });
  for (size_t i = 0; i < batch.size(); ++i) {
    absl::Status& status = statuses[i];
    if (!status.ok() && !lost.empty()) {
      status = OverloadedError("vision: the worker of this picture died", kEngineRetryAfter);
    } else if (status.ok() && HasNonFinite(results[i])) {
      // A tensor of the caller's may hold numbers that no picture has: that says nothing of the
      // tower.
      const bool own = batch[i].picture->cache_key.empty();
      const char* what = "the tower gave numbers that are not finite";
      status = own ? absl::InvalidArgumentError(what) : absl::InternalError(what);
      if (!own) statistics_.Update([](EncodeStatistics& all) { ++all.nan_outputs; });
    }
    EndTile(batch[i], status, std::move(results[i]));
  }
  return lost;
}

bool VisionEngine::FailRunning(Clock::time_point before, const std::string& reason) {
  std::vector<std::shared_ptr<Picture>> pictures;
  bool any = false;
  {
    MutexLock lock(running_mutex_);
    for (Running& batch : running_) {
      if (batch.begin >= before) continue;
      any = true;
      std::move(batch.pictures.begin(), batch.pictures.end(), std::back_inserter(pictures));
      batch.pictures.clear();
    }
  }
  for (const auto& picture : pictures) {
    EndTile({picture, 0, {}}, OverloadedError("vision: " + reason, kEngineRetryAfter));
  }
  return any;
}

std::string VisionEngine::FailHung() {
  const auto now = Clock::now();
  if (options_.step_limit.count() > 0) {
    std::string reason = absl::StrCat("a batch of pictures took longer than ",
                                      options_.step_limit.count(), " ms (--step-limit)");
    if (FailRunning(now - options_.step_limit, reason)) return reason;
  }
  if (options_.load_limit.count() > 0 && workers_->LoadsSince(now - options_.load_limit)) {
    std::string reason =
        absl::StrCat("a worker took longer than ", options_.load_limit.count(),
                     " ms to read its weights and try them (a multiple of --step-limit)");
    load_hangs_ = true;
    if (!workers_->any_ready()) RefuseAll(reason);
    return reason;
  }
  return "";
}

// One picture must not hurt another, nor must the size of the batch: what fails together is tried
// each on its own.
std::vector<absl::Status> VisionEngine::EncodeEach(PictureEncoder& encoder, const EncodeJob& like,
                                                   const std::vector<std::vector<float>>& pixels,
                                                   std::vector<std::string>& results) const {
  std::vector<absl::Status> statuses(pixels.size());
  try {
    results = encoder.Encode(pixels, like.select_layer, like.select_feature);
    return statuses;
  } catch (...) {
    statuses[0] = FromException(std::current_exception());
    if (pixels.size() == 1) return statuses;
    LogWarning("a batch failed, its pictures are tried one by one",
               {{"pictures", absl::StrCat(pixels.size())}, {"error", statuses[0].ToString()}});
  }
  for (size_t i = 0; i < pixels.size(); ++i) {
    statuses[i] = absl::OkStatus();
    try {
      results[i] =
          encoder.Encode(std::span(pixels).subspan(i, 1), like.select_layer, like.select_feature)
              .at(0);
    } catch (...) {
      statuses[i] = FromException(std::current_exception());
    }
  }
  return statuses;
}

void VisionEngine::EndTile(const Tile& tile, const absl::Status& status, std::string bytes) {
  Picture& picture = *tile.picture;
  {
    MutexLock lock(picture.mutex);
    if (picture.over) return;  // another tile failed, or everybody went away
    if (status.ok()) {
      picture.features[tile.index] = std::move(bytes);
      if (--picture.tiles_left > 0) return;
      picture.times.compute_seconds += Seconds(Clock::now() - picture.first_batch);
    }
    picture.over = true;
  }
  if (status.ok()) {
    Complete(picture);
  } else {
    Fail(picture, status);
  }
}

void VisionEngine::Complete(Picture& picture) {
  auto features = std::make_shared<Features>();
  EncodeTimes times;
  {
    MutexLock lock(picture.mutex);
    times = picture.times;
    features->rows =
        static_cast<int64_t>(picture.features.size()) * info_.Rows(picture.job.select_feature);
    features->bytes = std::move(picture.features[0]);
    for (size_t i = 1; i < picture.features.size(); ++i) features->bytes += picture.features[i];
  }
  features->crc32c = Crc32c(features->bytes);
  features->key = picture.cache_key;
  features->width = info_.width;
  features->image_width = static_cast<uint32_t>(picture.size.width);
  features->image_height = static_cast<uint32_t>(picture.size.height);
  statistics_.Update([&](EncodeStatistics& all) {
    ++all.encoded;
    all.queue.Add(times.queue_seconds);
    all.decode.Add(picture.decode_seconds);
    all.compute.Add(times.compute_seconds - picture.decode_seconds);
  });
  Answer(End(picture, features), features, false, times);
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

}  // namespace llava
