#include "model/openai/chat_client.h"

#include <curl/curl.h>
#include <strings.h>

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "model/openai/rate_limit.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kConnectTimeout{10'000}, kLongestRetryAfter{600'000};

void RequireMulti(CURLMcode code, const char* what) {
  if (code != CURLM_OK) {
    throw std::runtime_error(std::string("libcurl cannot ") + what + ": " +
                             curl_multi_strerror(code));
  }
}

void InitialiseCurl() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
      throw std::runtime_error("libcurl cannot be initialised");
    }
  });
}

// Trouble with the certificate or the URL does not pass by waiting.
bool IsHopeless(CURLcode code) {
  switch (code) {
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
      return true;
    default:
      return false;
  }
}

// A request between Submit and its result.
struct Call {
  std::string id, hash, body;
  uint64_t prompt_tokens = 0, reserved_tokens = 0;  // estimates
  int attempts = 0;

  // Of the attempt on the wire.
  CURL* easy = nullptr;
  uint64_t largest_answer_bytes = 0;
  std::string answer;
  std::string retry_after, retry_after_ms, should_retry, location;
  char complaint[CURL_ERROR_SIZE] = "";

  ChatResult Result(ChatEnd end, std::string error = "") const {
    return {.id = id, .hash = hash, .end = end, .error = std::move(error), .attempts = attempts};
  }
};

size_t TakeBody(char* data, size_t size, size_t count, void* user) {
  Call& call = *static_cast<Call*>(user);
  const size_t bytes = size * count;
  if (call.answer.size() + bytes > call.largest_answer_bytes) return 0;  // CURLE_WRITE_ERROR
  call.answer.append(data, bytes);
  return bytes;
}

size_t TakeHeader(char* data, size_t size, size_t count, void* user) {
  Call& call = *static_cast<Call*>(user);
  const std::string_view line(data, size * count);
  const std::pair<std::string_view, std::string*> wanted[] = {
      {"retry-after:", &call.retry_after},
      {"retry-after-ms:", &call.retry_after_ms},
      {"x-should-retry:", &call.should_retry},
      {"location:", &call.location}};
  for (const auto& [name, value] : wanted) {
    if (line.size() < name.size() || strncasecmp(line.data(), name.data(), name.size()) != 0) {
      continue;
    }
    std::string_view rest = line.substr(name.size());
    const size_t begin = rest.find_first_not_of(" \t");
    const size_t end = rest.find_last_not_of(" \t\r\n");
    *value = begin == rest.npos ? "" : rest.substr(begin, end + 1 - begin);
  }
  return line.size();
}

}  // namespace

std::string CompletionsUrl(std::string_view base_url) {
  constexpr std::string_view kPath = "/chat/completions";
  const std::string shown = std::string("\"").append(base_url).append("\"");
  if (!base_url.starts_with("http://") && !base_url.starts_with("https://")) {
    throw std::invalid_argument("the base URL " + shown +
                                " must begin with http:// or https://, as "
                                "https://api.openai.com/v1");
  }
  while (base_url.ends_with('/')) base_url.remove_suffix(1);
  if (base_url.ends_with(kPath)) base_url.remove_suffix(kPath.size());
  CURLU* parts = curl_url();
  const std::string url(base_url);
  char* user = nullptr;
  const bool parsed = parts && curl_url_set(parts, CURLUPART_URL, url.c_str(), 0) == CURLUE_OK;
  const bool has_user = parsed && curl_url_get(parts, CURLUPART_USER, &user, 0) == CURLUE_OK;
  const bool has_more = base_url.find_first_of("?#") != base_url.npos;
  curl_free(user);
  curl_url_cleanup(parts);
  if (!parsed) throw std::invalid_argument("the base URL " + shown + " is none");
  if (has_user) {
    throw std::invalid_argument("the base URL names a user; keys come from the environment");
  }
  if (has_more) {
    throw std::invalid_argument("the base URL " + shown +
                                " must end with its path, without \"?\" and \"#\"");
  }
  return url + std::string(kPath);
}

class OpenAiChatClient::Impl {
 public:
  explicit Impl(Options options)
      : options_(std::move(options)),
        url_(CompletionsUrl(options_.base_url)),
        limit_(options_.requests_per_minute, options_.tokens_per_minute, Clock::now()),
        backoff_(options_.backoff) {
    if (options_.concurrency < 1) throw std::invalid_argument("a concurrency below 1");
    if (options_.attempts < 1) throw std::invalid_argument("fewer than one attempt");
    if (options_.timeout.count() < 1) throw std::invalid_argument("a timeout below 1 ms");
    if (options_.requests_per_minute < 0 || options_.tokens_per_minute < 0) {
      throw std::invalid_argument("a rate below 0");
    }
    for (const char byte : options_.key) {  // it must not end its header
      if (byte <= ' ' || byte == '\x7f') {
        throw std::invalid_argument("the key holds white space or other than ASCII characters");
      }
    }
    InitialiseCurl();
    multi_ = curl_multi_init();
    if (!multi_) throw std::runtime_error("libcurl has no memory");
    AddHeader("Content-Type: application/json");
    AddHeader("Accept: application/json");
    AddHeader("Expect:");  // no pause before long bodies
    if (!options_.key.empty()) AddHeader("Authorization: Bearer " + options_.key);
  }

  ~Impl() {
    for (auto& [easy, call] : active_) {
      curl_multi_remove_handle(multi_, easy);
      curl_easy_cleanup(easy);
    }
    curl_multi_cleanup(multi_);
    curl_slist_free_all(headers_);
  }

  bool HasRoom() const {
    return !winding_down_ && pending() < static_cast<size_t>(options_.concurrency);
  }
  size_t pending() const { return waiting_.size() + active_.size() + results_.size(); }

  void Submit(const ChatRequest& request) {
    auto call = std::make_unique<Call>();
    call->id = request.id;
    call->hash = HashOf(request);
    call->body = BodyOf(request);
    call->prompt_tokens = EstimatePromptTokens(request);
    call->reserved_tokens = call->prompt_tokens + MostAnswerTokens(request);
    call->largest_answer_bytes = options_.largest_answer_bytes;
    waiting_.emplace(Clock::now(), std::move(call));
  }

  std::vector<ChatResult> Wait(milliseconds most) {
    const auto deadline = Clock::now() + most;
    while (true) {
      if (winding_down_) DropWaiting();
      const auto next = StartWhatIsDue();
      int running = 0;
      RequireMulti(curl_multi_perform(multi_, &running), "go on");
      CollectFinished();
      const auto now = Clock::now();
      if (!results_.empty() || now >= deadline || pending() == 0) break;
      const auto until = std::clamp(next, now, deadline);
      const auto pause = std::chrono::ceil<milliseconds>(until - now);
      RequireMulti(curl_multi_poll(multi_, nullptr, 0, static_cast<int>(pause.count()), nullptr),
                   "wait");
    }
    return std::exchange(results_, {});
  }

  void WindDown() { winding_down_ = true; }

 private:
  void AddHeader(const std::string& header) {
    curl_slist* longer = curl_slist_append(headers_, header.c_str());
    if (!longer) throw std::bad_alloc();
    headers_ = longer;
  }

  void DropWaiting() {
    for (auto& [due, call] : waiting_)
      results_.push_back(call->Result(ChatEnd::kStopped, "stopped"));
    waiting_.clear();
  }

  // Returns when the next one may start, the end of time if none waits.
  Clock::time_point StartWhatIsDue() {
    while (!waiting_.empty()) {
      const auto first = waiting_.begin();
      const auto now = Clock::now();
      const auto due = std::max(
          {first->first, held_until_, limit_.Earliest(now, first->second->reserved_tokens)});
      if (due > now) return due;
      std::unique_ptr<Call> call = std::move(first->second);
      waiting_.erase(first);
      limit_.Take(now, call->reserved_tokens);
      Start(std::move(call));
    }
    return Clock::time_point::max();
  }

  void Start(std::unique_ptr<Call> call) {
    CURL* easy = curl_easy_init();
    if (!easy) throw std::bad_alloc();
    ++call->attempts;
    call->easy = easy;
    call->answer.clear();
    call->retry_after.clear();
    call->retry_after_ms.clear();
    call->should_retry.clear();
    call->location.clear();
    call->complaint[0] = '\0';
    curl_easy_setopt(easy, CURLOPT_URL, url_.c_str());
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers_);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(call->body.size()));
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, call->body.data());
    curl_easy_setopt(easy, CURLOPT_USERAGENT, "llava-serving");
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, static_cast<long>(options_.timeout.count()));
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(kConnectTimeout.count()));
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_ACCEPT_ENCODING, "");  // all that libcurl can undo
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, TakeBody);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, call.get());
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, TakeHeader);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, call.get());
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, call->complaint);
    active_.emplace(easy, std::move(call));
    RequireMulti(curl_multi_add_handle(multi_, easy), "begin a request");
  }

  void CollectFinished() {
    int left = 0;
    while (CURLMsg* message = curl_multi_info_read(multi_, &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      CURL* easy = message->easy_handle;
      const CURLcode code = message->data.result;
      long status = 0;
      curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
      std::unique_ptr<Call> call = std::move(active_.extract(easy).mapped());
      curl_multi_remove_handle(multi_, easy);
      curl_easy_cleanup(easy);
      call->easy = nullptr;
      Finish(std::move(call), code, static_cast<int>(status));
    }
  }

  void Finish(std::unique_ptr<Call> call, CURLcode code, int status) {
    if (code != CURLE_OK) {
      limit_.Correct(call->reserved_tokens, 0);
      const std::string reason = call->complaint[0] ? call->complaint : curl_easy_strerror(code);
      const std::string error =
          code == CURLE_WRITE_ERROR
              ? "an answer of more than " + std::to_string(options_.largest_answer_bytes) + " bytes"
              : reason;
      if (IsHopeless(code)) {
        results_.push_back(call->Result(ChatEnd::kFatal, url_ + ": " + error));
      } else {
        TryAgain(std::move(call), error);
      }
      return;
    }
    const Verdict verdict = JudgeStatus(status, call->answer);
    if (verdict == Verdict::kAnswer) {
      TakeAnswer(std::move(call));
      return;
    }
    limit_.Correct(call->reserved_tokens, 0);  // servers do not count what they refuse
    std::string error = "HTTP " + std::to_string(status) + ": " + ErrorText(call->answer);
    if (verdict == Verdict::kRetry && call->should_retry != "false") {
      TryAgain(std::move(call), error);
      return;
    }
    if (!call->location.empty()) error += " (it points to " + call->location + ")";
    const bool fatal = verdict == Verdict::kFatal;
    if (fatal) error = url_ + ": " + error;
    results_.push_back(call->Result(fatal ? ChatEnd::kFatal : ChatEnd::kFailed, std::move(error)));
    results_.back().refused = !fatal;
  }

  void TakeAnswer(std::unique_ptr<Call> call) {
    ChatReply reply;
    try {
      reply = ParseCompletion(call->answer, call->prompt_tokens);
    } catch (const std::runtime_error& error) {
      TryAgain(std::move(call), error.what());
      return;
    }
    limit_.Correct(call->reserved_tokens, reply.usage.tokens());
    ChatResult result = call->Result(ChatEnd::kAnswered);
    result.reply = std::move(reply);
    results_.push_back(std::move(result));
  }

  void TryAgain(std::unique_ptr<Call> call, const std::string& error) {
    const auto now = Clock::now();
    auto asked = ParseRetryAfterMs(call->retry_after_ms);
    if (!asked) asked = ParseRetryAfter(call->retry_after, std::chrono::system_clock::now());
    if (asked && *asked > kLongestRetryAfter) {
      const auto seconds = std::chrono::ceil<std::chrono::seconds>(*asked).count();
      results_.push_back(call->Result(
          ChatEnd::kFatal,
          url_ + ": " + error + " (it asks to come back in " + std::to_string(seconds) + " s)"));
      return;
    }
    if (asked) held_until_ = std::max(held_until_, now + *asked);
    if (call->attempts >= options_.attempts) {
      results_.push_back(
          call->Result(ChatEnd::kFailed, error + " (after " + std::to_string(call->attempts) +
                                             (call->attempts == 1 ? " attempt)" : " attempts)")));
      return;
    }
    // After the time that the server asked for, all would come at once: jitter spreads them.
    const auto pause = asked ? *asked + backoff_.After(1) / 4 : backoff_.After(call->attempts);
    waiting_.emplace(now + pause, std::move(call));
  }

  const Options options_;
  const std::string url_;
  curl_slist* headers_ = nullptr;
  CURLM* multi_ = nullptr;
  RateLimit limit_;
  Backoff backoff_;
  bool winding_down_ = false;
  Clock::time_point held_until_{};                                   // by a Retry-After
  std::multimap<Clock::time_point, std::unique_ptr<Call>> waiting_;  // by when they may go
  std::map<CURL*, std::unique_ptr<Call>> active_;                    // on the wire
  std::vector<ChatResult> results_;
};

OpenAiChatClient::OpenAiChatClient(Options options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
OpenAiChatClient::~OpenAiChatClient() = default;

bool OpenAiChatClient::HasRoom() const { return impl_->HasRoom(); }
void OpenAiChatClient::Submit(const ChatRequest& request) { impl_->Submit(request); }
size_t OpenAiChatClient::pending() const { return impl_->pending(); }
std::vector<ChatResult> OpenAiChatClient::Wait(milliseconds most) { return impl_->Wait(most); }
void OpenAiChatClient::WindDown() { impl_->WindDown(); }

}  // namespace llava
