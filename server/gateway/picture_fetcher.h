#pragma once

// Pictures that a request names by URL.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/chat.pb.h"
#include "server/gateway/gateway_metrics.h"
#include "server/runtime/fair_queue.h"
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
  int transfers = 16;                         // at a time; 16 for each of them may wait

  void Declare(Settings& settings);
  // INVALID_ARGUMENT naming the setting.
  absl::Status Check() const;
};

// Is this URL one that may be fetched? INVALID_ARGUMENT with the reason: not http or https, a user
// in it, a host or port that is not among `options.hosts`.
absl::Status CheckPictureUrl(const std::string& url, const PictureUrlOptions& options);

// Fetches what the URLs of a request name, on a thread of its own. Keys take turns, and one that
// has pictures waiting leaves as much room as it takes. A name is looked up once, and the
// connection goes to an address that was checked as it is used; redirects, proxies, user names and
// compressed bodies are not followed or sent. Thread-safe.
class PictureFetcher {
 public:
  // `metrics` must outlive it.
  PictureFetcher(PictureUrlOptions options, uint64_t max_bytes, GatewayMetrics& metrics);
  ~PictureFetcher();
  PictureFetcher(const PictureFetcher&) = delete;
  PictureFetcher& operator=(const PictureFetcher&) = delete;

  bool enabled() const { return !options_.hosts.empty(); }
  static bool HasUrls(const v1::ChatRequest& request);

  struct Order {
    std::shared_ptr<v1::ChatRequest> request;  // nobody else's until the end
    std::string key;                           // name of the caller's API key, or empty
    uint32_t weight = 1;                       // of the key
    // Asked before more is kept, with the bytes of all pictures then; on the fetcher's thread. An
    // error ends the fetch, which ends with it.
    std::function<absl::Status(uint64_t bytes)> hold;
    // Is given, before anything else happens, what is to run when the caller goes away.
    std::function<void(std::function<void()> on_gone)> listen;
    std::string request_id = {};  // for the log
  };
  // Only if enabled. Puts the bytes in place of every URL of the request, then runs `done` once: on
  // this thread, or on its own, where it must not block. INVALID_ARGUMENT naming the field and the
  // reason; CANCELLED: the caller has gone; with RetryInfo UNAVAILABLE: too much to do, or stopped;
  // RESOURCE_EXHAUSTED: too much of this key.
  void Fetch(Order order, std::function<void(absl::Status)> done);

  // Fails what waits or runs; later calls fail at once.
  void Stop();

 private:
  struct Transfer;
  struct Job;  // the pictures of one request
  class Loop;

  void Run();
  // OK: there is room for so many more.
  absl::Status CheckRoom(const Order& order, size_t pictures) LLAVA_REQUIRES(mutex_);
  void Finish(const std::shared_ptr<Job>& job, const absl::Status& status);
  // What is left of ended jobs is looked for.
  void Sweep();

  const PictureUrlOptions options_;
  const uint64_t max_bytes_;
  GatewayMetrics& metrics_;

  Mutex mutex_;
  FairQueue<std::unique_ptr<Transfer>> waiting_ LLAVA_GUARDED_BY(mutex_);
  bool sweep_ LLAVA_GUARDED_BY(mutex_) = false;
  bool stopping_ LLAVA_GUARDED_BY(mutex_) = false;
  void* multi_ = nullptr;  // libcurl's; only wakeup is called from other threads
  std::thread thread_;     // last
};

}  // namespace llava
