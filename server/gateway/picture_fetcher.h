#pragma once

// Pictures that a request names by URL.

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/chat.pb.h"
#include "server/gateway/gateway_metrics.h"
#include "server/runtime/mutex.h"
#include "server/runtime/settings.h"

namespace llava {

struct PictureUrlOptions {
  // Where pictures may come from: host names separated by commas, "*.example.com" for those below
  // one, "*" for any; at the ports of http and https, or at that of "name:port". Empty: from
  // nowhere, URLs are refused.
  std::string hosts;
  // They may have addresses of private networks and of this machine.
  bool private_addresses = false;
  std::chrono::milliseconds timeout{10'000};  // of one picture
  int transfers = 16;                         // at a time; as many again per transfer may wait

  void Declare(Settings& settings);
  // INVALID_ARGUMENT naming the setting.
  absl::Status Check() const;
};

// Is this URL one that may be fetched? INVALID_ARGUMENT with the reason: not http or https, a user
// in it, a host or port that is not among `options.hosts`.
absl::Status CheckPictureUrl(const std::string& url, const PictureUrlOptions& options);

// Fetches what the URLs of a request name, on a thread of its own. A name is looked up once, and
// the connection goes to an address that was checked as it is used; redirects, proxies, user names
// and compressed bodies are not followed or sent. Thread-safe.
class PictureFetcher {
 public:
  // `metrics` must outlive it.
  PictureFetcher(PictureUrlOptions options, uint64_t max_bytes, GatewayMetrics& metrics);
  ~PictureFetcher();
  PictureFetcher(const PictureFetcher&) = delete;
  PictureFetcher& operator=(const PictureFetcher&) = delete;

  bool enabled() const { return !options_.hosts.empty(); }
  static bool HasUrls(const v1::ChatRequest& request);

  // Only if enabled. Puts the bytes in place of every URL of `request`, then runs `done` once: on
  // this thread, or on its own, where it must not block; `request` lives until then.
  // INVALID_ARGUMENT naming the field and the reason; UNAVAILABLE with RetryInfo: too much to do,
  // or stopped.
  void Fetch(std::shared_ptr<v1::ChatRequest> request, std::function<void(absl::Status)> done);

  // Fails what waits or runs; later calls fail at once.
  void Stop();

 private:
  struct Transfer;
  struct Job;  // the pictures of one request
  class Loop;

  void Run();
  void Finish(const std::shared_ptr<Job>& job, const absl::Status& status);

  const PictureUrlOptions options_;
  const uint64_t max_bytes_;
  GatewayMetrics& metrics_;

  Mutex mutex_;
  std::deque<std::unique_ptr<Transfer>> waiting_ LLAVA_GUARDED_BY(mutex_);
  bool stopping_ LLAVA_GUARDED_BY(mutex_) = false;
  void* multi_ = nullptr;  // libcurl's; only wakeup is called from other threads
  std::thread thread_;     // last
};

}  // namespace llava
