#pragma once

// Many requests: the journal before the server, the budget, and an end that loses nothing.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/openai/chat.h"
#include "model/openai/chat_journal.h"

namespace llava {

struct ChatPrices {  // of a million tokens, in any currency
  double prompt = 0, completion = 0;
  double Of(const ChatUsage& usage) const;
};

// What all answers in the journal have cost: as it was recorded, and by these prices where none
// was.
double CostOf(const ChatJournal& journal, const ChatPrices& prices);

// Asks a backend what the journal does not know and records the answers there before anybody sees
// them. One thread.
class ChatRun {
 public:
  struct Options {
    ChatPrices prices = {};
    // Limits of all that the journal holds, earlier runs included (CostOf); 0: none. They are kept,
    // as far as requests are not longer than estimated: one is sent only if it and those on the
    // wire would fit with answers of MostAnswerTokens.
    uint64_t most_requests = 0, most_tokens = 0;
    double most_cost = 0;
    // So many failed requests behind each other end the run: the server is down. Where requests of
    // the run were answered, now or before, those that the server refuses do not count. 0: never.
    int most_failures_in_a_row = 25;
  };
  enum class Outcome {
    kFinished,
    kStopped,  // StopRequest: what was on the wire has been waited for
    kBudget,
  };
  struct Totals {
    uint64_t answered = 0;  // by the backend
    uint64_t known = 0;     // by the journal, or the same as another request of the run
    uint64_t failed = 0;
    uint64_t repeated = 0;  // attempts beyond the first of a request
    ChatUsage usage;        // of `answered`
    double cost = 0;
  };
  using Next = std::function<std::optional<ChatRequest>()>;
  using Done = std::function<void(const ChatResult& result)>;

  // Both must outlive it. Throws std::invalid_argument for a limit of the cost without prices.
  ChatRun(ChatBackend& backend, ChatJournal& journal, const Options& options);

  // Takes requests from `next` until it has no more. `done` gets the result of each that was
  // answered or failed, in the order of their ends. `tick`, if any, is called ten times a second or
  // more. Throws std::runtime_error after a fatal error, and what `next` throws, when what was on
  // the wire has come back and is recorded; also what the journal throws. Call it once.
  Outcome Run(const Next& next, const Done& done, const std::function<void()>& tick = {});

  const Totals& totals() const { return totals_; }
  // What the journal has cost, for a bar: "cost 1.20 of 5.00", or "1.20M tokens" without prices.
  std::string Spent() const;

 private:
  struct Reserved {
    uint64_t tokens = 0;
    double cost = 0;
    std::vector<std::string> twins;  // ids of equal requests that wait for its answer
  };
  bool Fits(const Reserved& more) const;
  // Answers it from the journal, lets it wait for its twin, or submits it; false: no budget now.
  bool Take(const ChatRequest& request, const Done& done);
  void Record(std::vector<ChatResult> results, const Done& done);
  void Deliver(ChatResult result, const Done& done);

  ChatBackend& backend_;
  ChatJournal& journal_;
  const Options options_;
  std::map<std::string, Reserved> on_the_wire_;  // by hash
  Totals totals_;
  int failures_in_a_row_ = 0;
  std::string fatal_;  // why the run must end
};

}  // namespace llava
