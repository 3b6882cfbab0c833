// A turn that an earlier process began, until it can go on like any other.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "server/gateway/turn_runner.h"
#include "server/runtime/failpoint.h"
#include "server/runtime/logging.h"
#include "server/runtime/request_id.h"

namespace llava {

using std::chrono::steady_clock;
using std::chrono::system_clock;

namespace {

// Until a store that could not take something is asked again.
constexpr std::chrono::milliseconds kStoreDelay{250};

}  // namespace

std::shared_ptr<TurnRunner> TurnRunner::CreateRecovered(
    const TurnParts& parts, UnfinishedTurn turn, std::optional<JournalledAnswer> journalled) {
  TurnRequest request;
  request.caller = parts.keys.Named(turn.terms.key_name, turn.terms.weight);
  request.request_id = RandomId();
  request.session_id = std::move(turn.session_id);
  request.regenerate_turn_id = std::move(turn.turn_id);
  request.sampling = std::move(turn.sampling);
  request.key = std::move(turn.request);
  request.priority = turn.terms.priority;
  request.deadline = turn.terms.deadline;
  request.on_disconnect = turn.terms.on_disconnect;
  request.asked = turn.terms.asked;
  // The clock may have been set back since.
  const auto ago = std::max(system_clock::duration::zero(), system_clock::now() - turn.terms.asked);
  request.received = steady_clock::now() - std::chrono::duration_cast<steady_clock::duration>(ago);
  std::shared_ptr<TurnRunner> runner(new TurnRunner(parts, std::move(request)));
  runner->MakeLive();
  runner->recovered_ = true;
  runner->proven_ = false;
  runner->tries_ = turn.tries;
  runner->number_ = turn.number;
  runner->turn_.model = std::move(turn.model);
  runner->turn_.seed = runner->request_.sampling.seed();
  runner->turn_.terms = std::move(turn.terms);
  if (journalled) runner->answer_ = *std::move(journalled);
  runner->text_bytes_ = runner->answer_.text.size();
  // What the store knows survives the machine, what only the journal knows need not.
  if (turn.taken_up.size() >= runner->answer_.taken_up.size()) {
    runner->answer_.taken_up = std::move(turn.taken_up);
    runner->answer_.taken_up.push_back(runner->text_bytes_);
  }
  runner->live_->Restore(std::move(runner->answer_.text), runner->answer_.taken_up);
  return runner;
}

void TurnRunner::TakeUp() {
  TellStarted();
  if (system_clock::now() >= deadlines_.turn) {
    return Conclude(EndingOf(absl::DeadlineExceededError("")));
  }
  if (answer_.deaths >= kMaxDeaths) return Conclude(QuarantinedEnding());
  if (tries_ >= kMaxTries) {
    parts_.metrics.turns_given_up_total.Increment();
    return Conclude(GivenUpEnding());
  }
  // A break may come at any time, a place at once.
  const auto ticket = std::make_shared<std::atomic<uint64_t>>(0);
  SetStop([&gate = parts_.gate, ticket] { gate.Cancel(*ticket); });
  *ticket = parts_.gate.ReEnter(
      request_.caller, static_cast<double>(turn_.terms.tokens), request_.priority, deadlines_.turn,
      [self = shared_from_this()](absl::StatusOr<std::shared_ptr<TurnPermit>> permit) {
        self->OnPlace(std::move(permit));
      });
  if (broken()) parts_.gate.Cancel(*ticket);
}

void TurnRunner::OnPlace(absl::StatusOr<std::shared_ptr<TurnPermit>> permit) {
  if (permit.ok()) {
    request_.permit = *std::move(permit);
    return Try(&TurnRunner::LoadConversation);
  }
  // The gate closes before turns are broken off.
  if (absl::IsUnavailable(permit.status())) Break(TurnBreak::kShutdown);
  if (const auto why = broken()) return Conclude(EndingOfBreak(*why));
  Conclude(EndingOf(permit.status()));
}

void TurnRunner::Try(void (TurnRunner::*step)()) {
  SetStop([weak = weak_from_this()] {
    const auto self = weak.lock();
    if (self && self->parts_.recovery.Remove(self.get())) {
      self->Conclude(self->EndingOfBreak(*self->broken()));
    }
  });
  parts_.recovery.Enter(this, tries_ > 0, [self = shared_from_this(), step] {
    self->trying_ = true;
    self->SetStop(nullptr);
    if (const auto why = self->broken()) return self->Conclude(self->EndingOfBreak(*why));
    self->parts_.store.NoteTries(self->request_.session_id, self->turn_id_, self->tries_ + 1,
                                 self->answer_.taken_up, [self, step](const absl::Status& noted) {
                                   if (!noted.ok()) {  // what is acknowledged does not end with it
                                     self->EndTry();
                                     return self->Later(kStoreDelay,
                                                        [self, step] { self->Try(step); });
                                   }
                                   (void)LLAVA_FAILPOINT("turn.take_up");
                                   (self.get()->*step)();
                                 });
  });
}

void TurnRunner::LoadAgain() {
  EndTry();  // who waits cannot be blamed
  if (const auto why = broken()) return Conclude(EndingOfBreak(*why));
  if (system_clock::now() >= deadlines_.turn) {
    return Conclude(EndingOf(absl::DeadlineExceededError("")));
  }
  Later(kStoreDelay, [self = shared_from_this()] { self->Try(&TurnRunner::LoadConversation); });
}

void TurnRunner::EndTry() {
  if (std::exchange(trying_, false)) LeaveLane(tries_);
}

void TurnRunner::LeaveLane(uint32_t tries) {
  parts_.store.NoteTries(
      request_.session_id, turn_id_, tries, answer_.taken_up, [](const absl::Status& noted) {
        if (!noted.ok()) {
          LogWarning("tries of a turn not noted", {{"error", std::string(noted.message())}});
        }
      });
  parts_.recovery.Leave();
}

}  // namespace llava
