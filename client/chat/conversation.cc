#include "client/chat/conversation.h"

#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/chat/report.h"
#include "client/chat/utf8.h"

namespace llava {
namespace {

constexpr char kHelp[] =
    "Type a question and press Enter. Commands:\n"
    "  /image PATH  send a picture with the next question\n"
    "  /models      list what can be asked\n"
    "  /reset       begin a new conversation\n"
    "  /help        this text\n"
    "  /quit        end (Ctrl-D too)\n"
    "Ctrl-C stops a running answer. A question that begins with / is typed with //.";

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

// Paths as people paste them: in quotes, or relative to their home folder.
std::string ExpandPath(std::string_view path) {
  if (path.size() >= 2 && (path.front() == '"' || path.front() == '\'') &&
      path.back() == path.front()) {
    path = path.substr(1, path.size() - 2);
  }
  const char* home = std::getenv("HOME");
  if (home != nullptr && path.starts_with("~/")) return home + std::string(path.substr(1));
  return std::string(path);
}

// Whoever ends the program does not wait long for a gateway that hangs.
constexpr std::chrono::milliseconds kDeleteTimeout{2000};

// Runs while something is waited for that a signal ends.
class SignalWatch {
 public:
  // `stop` gets each signal, and whether it is the first.
  SignalWatch(Interrupts& interrupts, std::function<void(int signal, bool first)> stop)
      : interrupts_(interrupts), stop_(std::move(stop)), done_(eventfd(0, EFD_CLOEXEC)) {
    thread_ = std::thread([this] { Run(); });
  }
  ~SignalWatch() { Stop(); }

  // Ends the watch; returns the signal that came, 0 if none did. Others outweigh SIGINT.
  int Stop() {
    if (thread_.joinable()) {
      eventfd_write(done_, 1);
      thread_.join();
      close(done_);
    }
    return last_;
  }

 private:
  void Run() {
    while (const int signal = interrupts_.WaitFor(done_)) {
      stop_(signal, last_ == 0);
      if (last_ == 0 || signal != SIGINT) last_ = signal;
    }
  }

  Interrupts& interrupts_;
  const std::function<void(int, bool)> stop_;
  const int done_;
  int last_ = 0;  // of the thread; read after its end
  std::thread thread_;
};

}  // namespace

Conversation::Conversation(ChatClient& client, const ChatOptions& options, Screen& screen,
                           Interrupts& interrupts)
    : client_(client), options_(options), screen_(screen), interrupts_(interrupts) {}

absl::Status Conversation::Begin() {
  {
    const SignalWatch watch(interrupts_, [](int signal, bool) { _exit(128 + signal); });
    if (absl::Status status = client_.Connect(); !status.ok()) return status;
    if (absl::Status status = OpenSession(); !status.ok()) return status;
  }
  screen_.Remark(absl::StrFormat("%s at %s; /help lists commands", session_.model(),
                                 client_.options().gateway));
  if (options_.image.empty()) return absl::OkStatus();
  absl::Status status = Watched([this] { return AttachImage(options_.image); });
  if (end_signal_ != 0) status = absl::CancelledError("stopped");
  if (!status.ok()) End();
  return status;
}

absl::Status Conversation::Watched(const std::function<absl::Status()>& call) {
  SignalWatch watch(interrupts_, [this](int, bool) { client_.CancelCalls(); });
  absl::Status status = call();
  const int signal = watch.Stop();
  if (signal != 0 && (signal != SIGINT || interrupt_ends_)) end_signal_ = signal;
  if (signal == 0 || !absl::IsCancelled(status)) return status;
  screen_.Remark("stopped");
  return absl::OkStatus();
}

absl::Status Conversation::OpenSession() {
  absl::StatusOr<v1::Session> session;
  if (options_.session.empty()) {
    v1::CreateSessionRequest request;
    request.set_model(options_.model);
    if (options_.system) request.set_system_prompt(*options_.system);
    session = client_.CreateSession(request);
  } else {
    session = client_.GetSession(options_.session);
  }
  if (!session.ok()) return session.status();
  session_ = *std::move(session);
  delete_session_ = options_.session.empty() && !options_.keep_session;
  if (options_.session.empty()) return absl::OkStatus();

  absl::StatusOr<std::vector<v1::Turn>> turns = client_.ListTurns(session_.id());
  if (!turns.ok()) return turns.status();
  for (const v1::Turn& turn : *turns) {
    screen_.Remark(absl::StrCat("> ", turn.user_text()));
    screen_.Remark(turn.answer_text());
  }
  return absl::OkStatus();
}

void Conversation::End() {
  if (!delete_session_) {
    screen_.Remark(absl::StrCat("session ", session_.id()));
    return;
  }
  const absl::Status status = client_.DeleteSession(session_.id(), kDeleteTimeout);
  if (!status.ok() && !failed_) {
    screen_.Error(absl::StrCat("session ", session_.id(), " was not deleted: ", ErrorLine(status)));
  }
}

bool Conversation::Handle(std::string_view line) {
  line = Trim(line);
  if (line.empty()) return true;
  absl::Status status;
  if (!IsUtf8(line)) {
    status = absl::InvalidArgumentError("this line is not UTF-8; the terminal must send UTF-8");
  } else if (line.starts_with("//")) {
    status = Ask(line.substr(1));
  } else if (line.starts_with('/')) {
    const size_t space = std::min(line.find_first_of(" \t"), line.size());
    const std::string_view name = line.substr(0, space);
    if (name == "/quit" || name == "/exit") return false;
    const std::string_view argument = Trim(line.substr(space));
    status = Watched([&] { return Obey(name, argument); });
  } else {
    status = Ask(line);
  }
  if (!status.ok()) {
    failed_ = true;
    screen_.Error(absl::StrCat("error: ", ErrorLine(status)));
  }
  return end_signal_ == 0 && screen_.fault().empty();
}

absl::Status Conversation::Obey(std::string_view name, std::string_view argument) {
  if (name == "/image") {
    if (argument.empty()) return absl::InvalidArgumentError("say which picture: /image PATH");
    return AttachImage(ExpandPath(argument));
  }
  if (name == "/models") return ShowModels();
  if (name == "/reset") return Reset();
  if (name == "/help") {
    screen_.Remark(kHelp);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("there is no command ", std::string(name), "; /help lists the commands"));
}

absl::Status Conversation::AttachImage(const std::string& path) {
  absl::StatusOr<v1::ImageInfo> image = client_.UploadImageFile(session_.id(), path);
  if (!image.ok()) return image.status();
  pending_images_.push_back(image->id());
  screen_.Remark(absl::StrFormat("picture %s (%s, %u x %u) goes with the next question", path,
                                 image->format(), image->width(), image->height()));
  return absl::OkStatus();
}

absl::Status Conversation::ShowModels() {
  absl::StatusOr<v1::ChatServiceListModelsResponse> models = client_.ListModels();
  if (!models.ok()) return models.status();
  for (const v1::ModelInfo& info : models->models()) {
    screen_.Remark(absl::StrFormat(
        "%s version %u: %u tokens of context, %u per picture%s", info.model().name(),
        info.model().version(), info.context_tokens(), info.image_tokens(),
        info.model().name() == models->default_model() ? " (default)" : ""));
  }
  return absl::OkStatus();
}

absl::Status Conversation::Reset() {
  v1::CreateSessionRequest request;
  request.set_model(session_.model());
  if (session_.has_system_prompt()) request.set_system_prompt(session_.system_prompt());
  absl::StatusOr<v1::Session> fresh = client_.CreateSession(request);
  if (!fresh.ok()) return fresh.status();
  End();
  session_ = *std::move(fresh);
  delete_session_ = !options_.keep_session;
  pending_images_.clear();
  screen_.Remark("a new conversation begins");
  return absl::OkStatus();
}

absl::Status Conversation::Ask(std::string_view text) {
  v1::ChatRequest request;
  request.set_session_id(session_.id());
  request.set_text(std::string(text));
  for (const std::string& id : pending_images_) request.add_images()->set_id(id);
  if (!options_.session.empty()) request.mutable_model()->set_name(options_.model);
  *request.mutable_sampling() = options_.sampling;

  AnswerCanceller canceller;
  // A gateway that cannot be told to stop must not hold the user.
  const auto cancel = [&](bool first) {
    if (!first || !canceller.Cancel().ok()) canceller.Abandon();
  };
  SignalWatch watch(interrupts_, [&](int, bool first) { cancel(first); });
  absl::StatusOr<Answer> answer = client_.Ask(
      request,
      [&](std::string_view piece) {
        screen_.Answer(piece);
        if (!screen_.fault().empty()) cancel(/*first=*/true);  // nobody reads the rest
      },
      &canceller);
  const int signal = watch.Stop();
  screen_.EndAnswer();
  if (signal != 0 && (signal != SIGINT || interrupt_ends_)) end_signal_ = signal;

  if (!screen_.fault().empty()) {
    return absl::DataLossError(
        absl::StrCat("standard output does not take the answer: ", screen_.fault()));
  }
  if (!answer.ok()) {
    if (signal != 0 && absl::IsCancelled(answer.status())) {
      screen_.Remark("stopped");
      return absl::OkStatus();
    }
    // A picture that the model cannot take must not spoil all questions to come.
    if (absl::IsInvalidArgument(answer.status()) && !pending_images_.empty()) {
      pending_images_.clear();
      screen_.Remark("the picture is put away; /image PATH sends another");
    }
    return answer.status();
  }
  pending_images_.clear();
  screen_.Remark(ClosingLine(answer->finished));
  if (answer->finished.reason() == v1::FINISH_REASON_ERROR) failed_ = true;
  return absl::OkStatus();
}

}  // namespace llava
