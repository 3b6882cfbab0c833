#include "client/bench/load.h"

#include <grpcpp/client_context.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/bench/answer_calls.h"
#include "client/grpc_status.h"
#include "llava/v1/chat.grpc.pb.h"

namespace llava::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPauseAfterFailure{100};
constexpr std::chrono::milliseconds kUnaryTimeout{30'000};
constexpr std::chrono::milliseconds kLookAgain{50};
constexpr std::chrono::seconds kReportPeriod{5};

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// Words that every tokenizer knows, so that a word is about a token.
constexpr const char* kWords[] = {"what",  "is",    "the",  "picture", "of",    "a",
                                  "small", "house", "and",  "two",     "red",   "apples",
                                  "under", "big",   "tree", "where",   "does",  "it",
                                  "show",  "more",  "than", "one",     "green", "lion"};

class Run;
class TurnCall;

void Identify(grpc::ClientContext& context, const LoadOptions& options) {
  if (options.api_key.empty()) return;
  context.AddMetadata("authorization", absl::StrCat("Bearer ", options.api_key));
}

// A unary call, deleted by the reaction to its answer: copies of that reaction live on in gRPC for
// a moment, and must not keep the context, which holds the channel, behind the end of the run.
template <typename Request, typename Response>
struct UnaryCall {
  grpc::ClientContext context;
  Request request;
  Response response;

  explicit UnaryCall(const LoadOptions& options) {
    context.set_deadline(std::chrono::system_clock::now() + kUnaryTimeout);
    Identify(context, options);
  }
};

// One session from its creation to its deletion.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(Run& run, v1::ChatService::Stub& stub, uint64_t number)
      : run_(run), stub_(stub), random_(number) {}

  // `idle`: `done` of the creation is all that happens until End.
  void Begin(bool idle);
  void End();

 private:
  friend class TurnCall;

  void Ask();
  void OnTurn(const absl::Status& status, TurnSample sample);
  std::string Question();

  Run& run_;
  v1::ChatService::Stub& stub_;
  std::mt19937_64 random_;
  std::string id_;
  uint32_t turn_ = 0;
  bool failed_ = false;
};

// The answer to one question. Owns itself until OnDone.
class TurnCall : public grpc::ClientReadReactor<v1::ChatResponse> {
 public:
  TurnCall(std::shared_ptr<Session> session, v1::ChatRequest request)
      : session_(std::move(session)), request_(std::move(request)) {}

  // False: it was not, the run is stopped.
  bool Start();

 private:
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;
  void OnText(const v1::TextDelta& text, double now);

  std::shared_ptr<Session> session_;
  const v1::ChatRequest request_;
  // Shared with a run that cancels it.
  const AnswerCalls::Call context_ = std::make_shared<grpc::ClientContext>();
  v1::ChatResponse response_;
  Clock::time_point sent_;
  TurnSample sample_;
  uint64_t text_bytes_ = 0;
  absl::Status fault_;
  bool finished_ = false;
};

// What all sessions of a run share. Thread-safe.
class Run {
 public:
  Run(const std::vector<std::shared_ptr<grpc::Channel>>& channels, const LoadOptions& options)
      : options(options) {
    for (const auto& channel : channels) stubs_.push_back(v1::ChatService::NewStub(channel));
  }

  Samples Execute(const std::atomic<bool>& stop,
                  const std::function<void(const Progress&)>& on_progress);

  // A session is over: by itself, or before it began.
  void OnSessionEnd(bool failed);
  void OnIdle(std::shared_ptr<Session> session);
  void OnTurn(TurnSample sample);
  void OnFailure(const absl::Status& status);
  void OnPiece() { pieces_.fetch_add(1, std::memory_order_relaxed); }
  bool ending() const { return ending_.load(std::memory_order_relaxed); }

  const LoadOptions& options;
  AnswerCalls answers;

 private:
  // The caller has counted the session as running.
  void BeginSession(bool idle = false);
  // Begins sessions and reports, until `end`, `stop` or enough turns.
  void GoOnUntil(Clock::time_point end, const std::atomic<bool>& stop,
                 const std::function<void(const Progress&)>& on_progress);
  void Report(Clock::time_point now, const std::function<void(const Progress&)>& on_progress);
  void OpenLoop(Clock::time_point now);

  std::vector<std::unique_ptr<v1::ChatService::Stub>> stubs_;
  std::atomic<uint64_t> pieces_{0};
  std::atomic<bool> ending_{false};
  Clock::time_point begin_, next_report_, next_arrival_;
  std::mt19937_64 arrivals_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_:
  Samples samples_;
  bool measuring_ = false;
  int running_ = 0;
  int owed_ = 0;  // closed loop: sessions to begin after a failure
  Clock::time_point owed_since_;
  uint64_t numbers_ = 0;
  std::vector<std::shared_ptr<Session>> idle_;
};

void Session::Begin(bool idle) {
  auto* call = new UnaryCall<v1::CreateSessionRequest, v1::CreateSessionResponse>(run_.options);
  call->request.set_title("llava-bench");
  call->request.set_model(run_.options.model);
  stub_.async()->CreateSession(&call->context, &call->request, &call->response,
                               [self = shared_from_this(), call, idle](const grpc::Status& status) {
                                 if (status.ok()) self->id_ = call->response.session().id();
                                 delete call;
                                 Run& run = self->run_;
                                 if (!status.ok()) {
                                   run.OnFailure(StatusOf(status));
                                   run.OnSessionEnd(/*failed=*/true);
                                 } else if (idle) {
                                   run.OnIdle(self);
                                 } else {
                                   self->Ask();
                                 }
                               });
}

std::string Session::Question() {
  const LoadOptions& options = run_.options;
  if (!options.prompts.empty()) return options.prompts[random_() % options.prompts.size()];
  std::string text;
  for (int i = 0; i < options.prompt_words; ++i) {
    absl::StrAppend(&text, i == 0 ? "" : " ", kWords[random_() % std::size(kWords)]);
  }
  return text;
}

void Session::Ask() {
  const LoadOptions& options = run_.options;
  v1::ChatRequest request;
  request.set_session_id(id_);
  request.set_text(Question());
  *request.mutable_sampling() = options.sampling;
  if (++turn_ == 1 && !options.pictures.empty()) {
    std::string picture = options.pictures[random_() % options.pictures.size()];
    // Decoders stop at the end of the picture; its digest does not.
    if (options.unique_pictures) absl::StrAppend(&picture, random_());
    request.add_images()->set_data(std::move(picture));
  }
  auto* call = new TurnCall(shared_from_this(), std::move(request));
  if (call->Start()) return;
  delete call;
  End();
}

void Session::OnTurn(const absl::Status& status, TurnSample sample) {
  if (status.ok()) {
    run_.OnTurn(std::move(sample));
    if (turn_ < static_cast<uint32_t>(run_.options.turns) && !run_.ending()) return Ask();
  } else {
    failed_ = true;
    run_.OnFailure(status);
  }
  End();
}

void Session::End() {
  auto* call = new UnaryCall<v1::DeleteSessionRequest, v1::DeleteSessionResponse>(run_.options);
  call->request.set_session_id(id_);
  stub_.async()->DeleteSession(&call->context, &call->request, &call->response,
                               [self = shared_from_this(), call](const grpc::Status&) {
                                 // What cannot be deleted expires; the failure that led here is
                                 // counted.
                                 delete call;
                                 self->run_.OnSessionEnd(self->failed_);
                               });
}

bool TurnCall::Start() {
  context_->set_deadline(std::chrono::system_clock::now() + session_->run_.options.timeout);
  Identify(*context_, session_->run_.options);
  if (!session_->run_.answers.Enter(context_)) return false;
  sample_.turn = session_->turn_;
  sent_ = Clock::now();
  session_->stub_.async()->Chat(context_.get(), &request_, this);
  StartRead(&response_);
  StartCall();
  return true;
}

void TurnCall::OnText(const v1::TextDelta& text, double now) {
  if (text.offset() != text_bytes_) {
    fault_ = absl::DataLossError(
        absl::StrCat("text at byte ", text.offset(), " instead of ", text_bytes_));
    context_->TryCancel();
    return;
  }
  text_bytes_ += text.text().size();
  if (sample_.pieces++ == 0) {
    sample_.first_text = now;
  } else {
    sample_.gaps.push_back(static_cast<float>(now - sample_.last_text));
  }
  sample_.last_text = now;
  session_->run_.OnPiece();
  if (session_->run_.options.stamps) {
    int64_t stamp = 0;
    const std::string& digits = text.text();
    if (std::from_chars(digits.data(), digits.data() + digits.size(), stamp).ec == std::errc()) {
      const auto sent = Clock::time_point(std::chrono::nanoseconds(stamp));
      sample_.ages.push_back(static_cast<float>(Seconds(Clock::now() - sent)));
    }
  }
}

void TurnCall::OnReadDone(bool ok) {
  if (!ok) return;
  const double now = Seconds(Clock::now() - sent_);
  const v1::ChatEvent& event = response_.event();
  switch (event.event_case()) {
    case v1::ChatEvent::kTurnStarted:
      sample_.acknowledged = now;
      break;
    case v1::ChatEvent::kText:
      OnText(event.text(), now);
      break;
    case v1::ChatEvent::kTurnFinished: {
      const v1::TurnFinished& finished = event.turn_finished();
      finished_ = true;
      sample_.generated_tokens = finished.usage().generated_tokens();
      sample_.prompt_tokens = finished.usage().text_tokens() + finished.usage().image_tokens();
      sample_.cached_tokens = finished.usage().cached_tokens();
      if (finished.text_bytes() != text_bytes_) {
        fault_ = absl::DataLossError(absl::StrCat("the answer has ", finished.text_bytes(),
                                                  " bytes, ", text_bytes_, " arrived"));
      }
      break;
    }
    case v1::ChatEvent::EVENT_NOT_SET:
      break;
  }
  StartRead(&response_);
}

void TurnCall::OnDone(const grpc::Status& status) {
  sample_.total = Seconds(Clock::now() - sent_);
  absl::Status result = fault_;
  if (result.ok()) result = StatusOf(status);
  if (result.ok() && !finished_)
    result = absl::DataLossError("the stream ended without its last event");
  const auto session = std::move(session_);
  TurnSample sample = std::move(sample_);
  const bool stopped = session->run_.answers.Leave(context_, result);
  delete this;  // before the run may end: the context holds the channel
  if (stopped) return session->End();
  session->OnTurn(result, std::move(sample));
}

void Run::BeginSession(bool idle) {
  uint64_t number = 0;
  {
    std::lock_guard lock(mutex_);
    number = ++numbers_;
    if (!idle) ++samples_.sessions;
  }
  const uint64_t seed = options.seed * 0x9e3779b97f4a7c15u + number;
  std::make_shared<Session>(*this, *stubs_[number % stubs_.size()], seed)->Begin(idle);
}

void Run::OnSessionEnd(bool failed) {
  bool next = false;
  {
    std::lock_guard lock(mutex_);
    const bool more = options.rate == 0 && !ending();
    if (more && failed) {
      ++owed_;
      owed_since_ = Clock::now();
    }
    next = more && !failed;
    if (!next) --running_;
    changed_.notify_all();
  }
  if (next) BeginSession();
}

void Run::OnIdle(std::shared_ptr<Session> session) {
  std::lock_guard lock(mutex_);
  idle_.push_back(std::move(session));
  changed_.notify_all();
}

void Run::OnTurn(TurnSample sample) {
  std::lock_guard lock(mutex_);
  if (!measuring_) return;
  if (!ending()) ++samples_.window_turns;
  samples_.turns.push_back(std::move(sample));
  if (options.max_turns != 0 && samples_.turns.size() >= options.max_turns) changed_.notify_all();
}

void Run::OnFailure(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  samples_.Fail(status);
}

void Run::Report(Clock::time_point now, const std::function<void(const Progress&)>& on_progress) {
  Progress progress;
  {
    std::lock_guard lock(mutex_);
    progress = {.seconds = Seconds(now - begin_),
                .warming_up = !measuring_,
                .turns = samples_.turns.size(),
                .failed = samples_.failed(),
                .pieces = pieces_.load(),
                .running = running_};
  }
  on_progress(progress);
}

void Run::OpenLoop(Clock::time_point now) {
  std::exponential_distribution<double> pause(options.rate);
  while (next_arrival_ <= now) {
    next_arrival_ += std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(pause(arrivals_)));
    bool begin = false;
    {
      std::lock_guard lock(mutex_);
      begin = running_ - static_cast<int>(idle_.size()) < options.sessions;
      if (begin) {
        ++running_;
      } else {
        ++samples_.dropped_sessions;
      }
    }
    if (begin) BeginSession();
  }
}

void Run::GoOnUntil(Clock::time_point end, const std::atomic<bool>& stop,
                    const std::function<void(const Progress&)>& on_progress) {
  while (Clock::now() < end && !stop.load()) {
    int begin = 0;
    auto wake = std::min(end, Clock::now() + kLookAgain);
    if (options.rate > 0) wake = std::min(wake, next_arrival_);
    {
      std::unique_lock lock(mutex_);
      if (options.max_turns != 0 && samples_.turns.size() >= options.max_turns) return;
      changed_.wait_until(lock, wake);
      if (owed_ > 0 && Clock::now() - owed_since_ >= kPauseAfterFailure) {
        begin = std::exchange(owed_, 0);
        running_ += begin;
      }
    }
    for (; begin > 0; --begin) BeginSession();
    const auto now = Clock::now();
    if (options.rate > 0) OpenLoop(now);
    if (now < next_report_) continue;
    Report(now, on_progress);
    next_report_ = now + kReportPeriod;
  }
}

Samples Run::Execute(const std::atomic<bool>& stop,
                     const std::function<void(const Progress&)>& on_progress) {
  arrivals_.seed(options.seed);
  {
    std::unique_lock lock(mutex_);
    running_ = options.idle_sessions;
  }
  for (int i = 0; i < options.idle_sessions; ++i) BeginSession(/*idle=*/true);
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return static_cast<int>(idle_.size()) >= running_; });
    // Those that could not be created count as failures and are not owed.
    owed_ = 0;
    if (options.rate == 0) running_ += options.sessions;
  }
  begin_ = next_arrival_ = Clock::now();
  next_report_ = begin_ + kReportPeriod;
  if (options.rate == 0) {
    for (int i = 0; i < options.sessions; ++i) BeginSession();
  }
  const auto after = [&](double seconds) {
    return begin_ +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  };
  GoOnUntil(after(options.warmup_seconds), stop, on_progress);
  uint64_t pieces_before = 0;
  const auto window = Clock::now();
  {
    std::lock_guard lock(mutex_);
    measuring_ = true;
    samples_.failures.clear();
    pieces_before = pieces_.load();
  }
  GoOnUntil(after(options.warmup_seconds + options.seconds), stop, on_progress);
  ending_.store(true);
  {
    std::lock_guard lock(mutex_);
    samples_.seconds = Seconds(Clock::now() - window);
    samples_.window_pieces = pieces_.load() - pieces_before;
  }
  std::vector<std::shared_ptr<Session>> idle;
  {
    std::lock_guard lock(mutex_);
    idle.swap(idle_);
  }
  for (auto& session : idle) std::exchange(session, nullptr)->End();
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kLookAgain, [&] { return running_ == 0; })) {
    if (!stop.load()) continue;
    lock.unlock();
    answers.CancelAll();
    lock.lock();
  }
  return std::move(samples_);
}

}  // namespace

Samples RunLoad(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                const LoadOptions& options, const std::atomic<bool>& stop,
                const std::function<void(const Progress&)>& on_progress) {
  return Run(channels, options).Execute(stop, on_progress);
}

}  // namespace llava::bench
