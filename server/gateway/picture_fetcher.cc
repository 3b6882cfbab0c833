#include "server/gateway/picture_fetcher.h"

#include <curl/curl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <limits>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/gateway/call_fault.h"
#include "server/gateway/public_address.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr size_t kMaxUrlBytes = 2048;
constexpr int kWaitingPerTransfer = 16;

// Of a job that has ended otherwise before, nobody hears it.
absl::Status Gone() { return absl::CancelledError("the client went away"); }

struct UrlParts {
  std::string scheme, host, port;
};

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError("url " + what); }

std::string Part(CURLU* url, CURLUPart which) {
  char* text = nullptr;
  if (curl_url_get(url, which, &text, CURLU_DEFAULT_PORT) != CURLUE_OK) return "";
  std::string part(text);
  curl_free(text);
  return part;
}

using ParsedUrl = std::unique_ptr<CURLU, decltype(&curl_url_cleanup)>;

// By libcurl's parser, whose result is also what is fetched: two parsers could differ.
absl::StatusOr<ParsedUrl> Parse(const std::string& url) {
  if (url.size() > kMaxUrlBytes) {
    return Bad(absl::StrCat("has ", url.size(), " bytes, allowed are ", kMaxUrlBytes));
  }
  ParsedUrl parsed(curl_url(), &curl_url_cleanup);
  if (!parsed || curl_url_set(parsed.get(), CURLUPART_URL, url.c_str(), CURLU_NON_SUPPORT_SCHEME) !=
                     CURLUE_OK) {
    return Bad("is none; it looks like https://example.com/cat.png");
  }
  return parsed;
}

// "example.com", "*.example.com", "*", each perhaps with ":port".
bool Allows(absl::string_view entry, const UrlParts& url) {
  std::string port = url.scheme == "https" ? "443" : "80";
  if (const size_t colon = entry.rfind(':');
      colon != absl::string_view::npos && !absl::EndsWith(entry, "]")) {
    port = std::string(entry.substr(colon + 1));
    entry = entry.substr(0, colon);
  }
  if (port != url.port) return false;
  if (entry == "*") return true;
  std::string host = absl::AsciiStrToLower(url.host);
  if (absl::EndsWith(host, ".")) host.pop_back();
  if (absl::StartsWith(entry, "*.")) return absl::EndsWithIgnoreCase(host, entry.substr(1));
  return absl::EqualsIgnoreCase(host, entry);
}

absl::Status CheckParts(CURLU* url, const PictureUrlOptions& options) {
  const UrlParts parts{Part(url, CURLUPART_SCHEME), Part(url, CURLUPART_HOST),
                       Part(url, CURLUPART_PORT)};
  if (parts.scheme != "https" && parts.scheme != "http") {
    return Bad("begins with neither https:// nor http://");
  }
  if (!Part(url, CURLUPART_USER).empty() || !Part(url, CURLUPART_PASSWORD).empty()) {
    return Bad("has a user name or password in it");
  }
  for (const absl::string_view entry : absl::StrSplit(options.hosts, ',', absl::SkipEmpty())) {
    if (Allows(absl::StripAsciiWhitespace(entry), parts)) return absl::OkStatus();
  }
  return Bad(absl::StrCat("leads to ", parts.host.substr(0, 100), ":", parts.port,
                          ", from where this gateway takes no pictures; send the picture itself"));
}

}  // namespace

void PictureUrlOptions::Declare(Settings& settings) {
  settings.Add("picture-url-hosts", &hosts,
               "Hosts from which pictures named by URL are fetched: names with commas between, "
               "*.NAME for those below, * for any, NAME:PORT; empty = URLs are refused");
  settings.Add("picture-url-private", &private_addresses,
               "These hosts may have addresses of private networks and of this machine");
  settings.Add("picture-url-timeout", &timeout, "Longest time for one such picture");
  settings.Add("picture-url-transfers", &transfers, "Such pictures fetched at a time", 1, 1024);
}

absl::Status PictureUrlOptions::Check() const {
  if (timeout.count() <= 0) {
    return absl::InvalidArgumentError("--picture-url-timeout must be above 0");
  }
  for (absl::string_view entry : absl::StrSplit(hosts, ',', absl::SkipEmpty())) {
    entry = absl::StripAsciiWhitespace(entry);
    if (entry.empty() || absl::StrContains(entry, "/") || absl::StrContains(entry, " ") ||
        (absl::StrContains(entry.substr(1), "*"))) {
      return absl::InvalidArgumentError(
          absl::StrCat("--picture-url-hosts: \"", entry, "\" is not NAME, *.NAME, * or NAME:PORT"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPictureUrl(const std::string& url, const PictureUrlOptions& options) {
  auto parsed = Parse(url);
  return parsed.ok() ? CheckParts(parsed->get(), options) : parsed.status();
}

// Once it waits, all but `gone` is the fetcher's thread's.
struct PictureFetcher::Job {
  bool ended() const { return !done || gone; }

  Order order;
  std::function<void(absl::Status)> done;  // null: done
  size_t open = 0;                         // pictures still to come
  uint64_t bytes = 0;                      // of those that came and come
  absl::Status refusal;                    // of more bytes
  std::atomic<bool> gone = false;          // the caller
};

struct PictureFetcher::Transfer {
  const PictureFetcher* fetcher;
  std::shared_ptr<Job> job;
  v1::ImageInput* image;
  std::string field;  // "images[0]"
  ParsedUrl url{nullptr, &curl_url_cleanup};
  std::string body;
  bool too_long = false, not_public = false;

  static size_t Take(char* bytes, size_t size, size_t count, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    Job& job = *transfer.job;
    if (job.ended() || !job.refusal.ok()) return 0;  // ends the transfer
    if (transfer.body.size() + size * count > transfer.fetcher->max_bytes_) {
      transfer.too_long = true;
      return 0;
    }
    if (job.order.hold) job.refusal = job.order.hold(job.bytes + size * count);
    if (!job.refusal.ok()) return 0;
    job.bytes += size * count;
    transfer.body.append(bytes, size * count);
    return size * count;
  }
  // The one place where an address is used: whatever a name meant before, this is what is reached.
  static curl_socket_t Open(void* self, curlsocktype, curl_sockaddr* address) {
    auto& transfer = *static_cast<Transfer*>(self);
    if (!transfer.fetcher->options_.private_addresses && !IsPublicAddress(address->addr)) {
      transfer.not_public = true;
      return CURL_SOCKET_BAD;
    }
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
  }
};

PictureFetcher::PictureFetcher(PictureUrlOptions options, uint64_t max_bytes,
                               GatewayMetrics& metrics)
    : options_(std::move(options)), max_bytes_(max_bytes), metrics_(metrics) {
  if (!enabled()) return;
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  multi_ = curl_multi_init();
  thread_ = std::thread([this] { Run(); });
}

PictureFetcher::~PictureFetcher() {
  Stop();
  if (thread_.joinable()) thread_.join();
  if (multi_ != nullptr) curl_multi_cleanup(static_cast<CURLM*>(multi_));
}

void PictureFetcher::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  if (multi_ != nullptr) curl_multi_wakeup(static_cast<CURLM*>(multi_));
}

bool PictureFetcher::HasUrls(const v1::ChatRequest& request) {
  const auto any = [](const google::protobuf::RepeatedPtrField<v1::ImageInput>& images) {
    for (const v1::ImageInput& image : images) {
      if (image.has_url()) return true;
    }
    return false;
  };
  if (any(request.images())) return true;
  for (const v1::ChatMessage& message : request.messages()) {
    if (any(message.images())) return true;
  }
  return false;
}

void PictureFetcher::Fetch(Order order, std::function<void(absl::Status)> done) {
  const auto job = std::make_shared<Job>();
  job->order = std::move(order);
  std::vector<std::unique_ptr<Transfer>> transfers;
  absl::Status status;
  const auto add = [&](google::protobuf::RepeatedPtrField<v1::ImageInput>& images,
                       const std::string& where) {
    for (int i = 0; i < images.size() && status.ok(); ++i) {
      if (!images[i].has_url()) continue;
      auto transfer = std::make_unique<Transfer>();
      transfer->fetcher = this;
      transfer->job = job;
      transfer->image = &images[i];
      transfer->field = absl::StrCat(where, "images[", i, "]");
      auto url = Parse(images[i].url());
      status = url.ok() ? CheckParts(url->get(), options_) : url.status();
      if (!status.ok()) {
        status = absl::Status(status.code(),
                              absl::StrCat(transfer->field, ": ", std::string(status.message())));
        return;
      }
      transfer->url = *std::move(url);
      transfers.push_back(std::move(transfer));
    }
  };
  v1::ChatRequest& request = *job->order.request;
  add(*request.mutable_images(), "");
  for (int i = 0; i < request.messages_size(); ++i) {
    add(*request.mutable_messages(i)->mutable_images(), absl::StrCat("messages[", i, "]."));
  }
  if (!status.ok()) metrics_.CountPictureFetch("refused");
  if (!status.ok() || transfers.empty()) return done(status);
  job->open = transfers.size();
  job->done = std::move(done);
  if (job->order.listen) {
    job->order.listen([this, weak = std::weak_ptr<Job>(job)] {
      const auto gone = weak.lock();  // a transfer has it, and so the fetcher is there
      if (!gone) return;
      gone->gone = true;
      Sweep();
    });
  }
  {
    MutexLock lock(mutex_);
    status = CheckRoom(job->order, transfers.size());
    if (status.ok()) {
      const QueuePlace place{.tenant = job->order.key, .weight = job->order.weight};
      for (auto& transfer : transfers) waiting_.Push(place, std::move(transfer));
    }
  }
  if (!status.ok()) return Finish(job, status);
  curl_multi_wakeup(static_cast<CURLM*>(multi_));
}

absl::Status PictureFetcher::CheckRoom(const Order& order, size_t pictures) {
  constexpr std::chrono::seconds kRetry{1};
  if (stopping_) return ShuttingDown();
  const size_t most = static_cast<size_t>(options_.transfers) * kWaitingPerTransfer;
  const size_t room = most - waiting_.size();
  if (pictures > room) {
    return OverloadedError("too many pictures are being fetched; try again", kRetry);
  }
  if (order.key.empty()) return absl::OkStatus();
  size_t mine = 0;
  waiting_.ForEach([&](const auto& transfer) { mine += transfer->job->order.key == order.key; });
  if (mine == 0 || mine + pictures <= room - pictures) return absl::OkStatus();
  return LimitError(absl::StrCat("the API key \"", order.key, "\" has ", mine,
                                 " pictures that wait to be fetched, and there is room for ", room,
                                 " more of all keys; wait for some of them"),
                    kRetry);
}

void PictureFetcher::Sweep() {
  {
    MutexLock lock(mutex_);
    sweep_ = true;
  }
  curl_multi_wakeup(static_cast<CURLM*>(multi_));
}

void PictureFetcher::Finish(const std::shared_ptr<Job>& job, const absl::Status& status) {
  if (const auto done = std::exchange(job->done, nullptr)) done(status);
}

// What libcurl works on.
class PictureFetcher::Loop {
 public:
  explicit Loop(PictureFetcher& fetcher)
      : fetcher_(fetcher), multi_(static_cast<CURLM*>(fetcher.multi_)) {}

  ~Loop() {
    for (auto& [easy, transfer] : running_) {
      Release(easy);
      fetcher_.Finish(transfer->job, ShuttingDown());
    }
  }

  // Ends what runs for ended jobs.
  void Sweep() {
    for (auto it = running_.begin(); it != running_.end();) {
      const auto job = it->second->job;
      if (!job->ended()) {
        ++it;
        continue;
      }
      Release(it->first);
      it = running_.erase(it);
      fetcher_.Finish(job, Gone());
    }
  }

  size_t running() const { return running_.size(); }

  void Begin(std::unique_ptr<Transfer> transfer) {
    if (transfer->job->ended()) return fetcher_.Finish(transfer->job, Gone());
    const PictureUrlOptions& options = fetcher_.options_;
    CURL* easy = curl_easy_init();
    if (easy == nullptr) {
      fetcher_.Finish(transfer->job, OverloadedError("this gateway is out of memory; try again",
                                                     std::chrono::seconds(1)));
      return fetcher_.Sweep();  // its other pictures
    }
    curl_easy_setopt(easy, CURLOPT_CURLU, transfer->url.get());
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(easy, CURLOPT_PROXY, "");  // whatever the environment says
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, &Transfer::Open);
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, transfer.get());
    curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, 1L);  // each one asks Open
    curl_easy_setopt(easy, CURLOPT_FORBID_REUSE, 1L);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, &Transfer::Take);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer.get());
    curl_easy_setopt(easy, CURLOPT_MAXFILESIZE_LARGE,
                     static_cast<curl_off_t>(std::min<uint64_t>(
                         fetcher_.max_bytes_, std::numeric_limits<curl_off_t>::max())));
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, static_cast<long>(options.timeout.count()));
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    // Who ends while a name is looked up does not wait for a name server that says nothing.
    curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
    curl_easy_setopt(easy, CURLOPT_USERAGENT, "llava-serving");
    curl_multi_add_handle(multi_, easy);
    running_[easy] = std::move(transfer);
  }

  void Step() {
    int running = 0;
    curl_multi_perform(multi_, &running);
    int left = 0;
    bool ended = false;
    while (CURLMsg* message = curl_multi_info_read(multi_, &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      End(message->easy_handle, message->data.result);
      ended = true;
    }
    // Where one has ended another may begin.
    if (!ended) curl_multi_poll(multi_, nullptr, 0, 1000, nullptr);
  }

 private:
  void Release(CURL* easy) {
    curl_multi_remove_handle(multi_, easy);
    curl_easy_cleanup(easy);
  }

  void End(CURL* easy, CURLcode result) {
    long code = 0;
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &code);
    const auto found = running_.find(easy);
    const std::unique_ptr<Transfer> transfer = std::move(found->second);
    running_.erase(found);
    Release(easy);
    Job& job = *transfer->job;
    if (job.ended()) return fetcher_.Finish(transfer->job, Gone());
    const absl::Status status = StatusOf(*transfer, result, code);
    fetcher_.metrics_.CountPictureFetch(status.ok()        ? "ok"
                                        : job.refusal.ok() ? "failed"
                                                           : "refused");
    if (!status.ok()) {
      fetcher_.Finish(transfer->job, status);
      return fetcher_.Sweep();  // its other pictures
    }
    transfer->image->set_data(std::move(transfer->body));
    if (--job.open == 0) fetcher_.Finish(transfer->job, absl::OkStatus());
  }

  absl::Status StatusOf(const Transfer& transfer, CURLcode result, long code) const {
    if (!transfer.job->refusal.ok()) return transfer.job->refusal;
    const std::string why = WhyNot(transfer, result, code);
    if (why.empty()) return absl::OkStatus();
    // Without the URL, which may hold a secret.
    LogInfo("picture not fetched", {{"request_id", transfer.job->order.request_id},
                                    {"field", transfer.field},
                                    {"reason", why}});
    return absl::InvalidArgumentError(
        absl::StrCat(transfer.field, ": url ", why, "; send the picture itself, or try again"));
  }

  std::string WhyNot(const Transfer& transfer, CURLcode result, long code) const {
    // Of an answer its status is told and nothing else: it may be of a network that the caller
    // cannot see (--picture-url-private).
    if (transfer.not_public && result != CURLE_OK) return "leads to no public address";
    if (transfer.too_long || result == CURLE_FILESIZE_EXCEEDED) {
      return absl::StrCat("gives more than the ", fetcher_.max_bytes_, " bytes that are allowed");
    }
    if (result == CURLE_OPERATION_TIMEDOUT) {
      return absl::StrCat("gave no picture within ", fetcher_.options_.timeout.count(), " ms");
    }
    if (result != CURLE_OK) return absl::StrCat("cannot be fetched: ", curl_easy_strerror(result));
    if (code >= 300 && code < 400) return "leads on to another place, which is not followed";
    if (code != 200) return absl::StrCat("was answered with HTTP status ", code);
    return "";
  }

  PictureFetcher& fetcher_;
  CURLM* const multi_;
  std::map<CURL*, std::unique_ptr<Transfer>> running_;
};

void PictureFetcher::Run() {
  Loop loop(*this);
  while (true) {
    std::vector<std::unique_ptr<Transfer>> begin, swept;
    bool stopping = false, sweep = false;
    {
      MutexLock lock(mutex_);
      stopping = stopping_;
      sweep = std::exchange(sweep_, false);
      if (sweep) {
        swept = waiting_.RemoveIf([](const auto& transfer) { return transfer->job->ended(); });
      }
    }
    for (const auto& transfer : swept) {
      Finish(transfer->job, Gone());
    }
    if (sweep) loop.Sweep();
    {
      MutexLock lock(mutex_);
      while (!waiting_.empty() && (stopping || loop.running() + begin.size() <
                                                   static_cast<size_t>(options_.transfers))) {
        begin.push_back(*waiting_.PopFront());
      }
    }
    if (stopping) {
      for (const auto& transfer : begin) Finish(transfer->job, ShuttingDown());
      return;
    }
    for (auto& transfer : begin) loop.Begin(std::move(transfer));
    loop.Step();
  }
}

}  // namespace llava
