#include "model/openai/chat_run.h"

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <utility>

#include "model/progress/stop_request.h"

namespace llava {
namespace {

constexpr std::chrono::milliseconds kTick{100};

std::string ShortNumber(uint64_t number) {
  char text[32];
  if (number < 10'000) {
    std::snprintf(text, sizeof(text), "%llu", static_cast<unsigned long long>(number));
  } else if (number < 1'000'000) {
    std::snprintf(text, sizeof(text), "%.0fK", static_cast<double>(number) / 1e3);
  } else {
    std::snprintf(text, sizeof(text), "%.2fM", static_cast<double>(number) / 1e6);
  }
  return text;
}

}  // namespace

double ChatPrices::Of(const ChatUsage& usage) const {
  return (prompt * static_cast<double>(usage.prompt_tokens) +
          completion * static_cast<double>(usage.completion_tokens)) /
         1e6;
}

double CostOf(const ChatJournal& journal, const ChatPrices& prices) {
  return journal.cost() + prices.Of(journal.unpriced());
}

ChatRun::ChatRun(ChatBackend& backend, ChatJournal& journal, const Options& options)
    : backend_(backend), journal_(journal), options_(options) {
  if (options.most_cost > 0 && options.prices.prompt <= 0 && options.prices.completion <= 0) {
    throw std::invalid_argument("a limit of the cost needs the prices of tokens");
  }
}

ChatRun::Outcome ChatRun::Run(const Next& next, const Done& done,
                              const std::function<void()>& tick) {
  Outcome outcome = Outcome::kFinished;
  std::optional<ChatRequest> held;  // does not fit before others have come back
  std::exception_ptr no_more;       // what `next` threw
  bool more = true, winding_down = false;
  const auto wind_down = [&] {
    backend_.WindDown();
    winding_down = true;
    more = false;
    held.reset();
  };
  while (true) {
    if (!winding_down && !fatal_.empty()) wind_down();
    if (!winding_down && StopRequest::Requested()) {
      outcome = Outcome::kStopped;
      wind_down();
    }
    while (more && fatal_.empty() && !StopRequest::Requested() && backend_.HasRoom()) {
      try {
        if (!held) held = next();
      } catch (...) {  // what is on the wire will be paid for
        no_more = std::current_exception();
        wind_down();
        break;
      }
      if (!held) {
        more = false;
      } else if (Take(*held, done)) {
        held.reset();
      } else {
        break;
      }
      if (tick) tick();
    }
    if (backend_.pending() == 0) {
      if (winding_down || !more) break;
      if (held && fatal_.empty() && !StopRequest::Requested()) {  // nothing more will come back
        outcome = Outcome::kBudget;
        break;
      }
    }
    Record(backend_.Wait(kTick), done);
    if (tick) tick();
  }
  if (no_more) std::rethrow_exception(no_more);
  if (!fatal_.empty()) throw std::runtime_error(fatal_);
  return outcome;
}

bool ChatRun::Fits(const Reserved& more) const {
  uint64_t tokens = more.tokens + journal_.usage().tokens();
  double cost = more.cost + CostOf(journal_, options_.prices);
  for (const auto& [hash, reserved] : on_the_wire_) {
    tokens += reserved.tokens;
    cost += reserved.cost;
  }
  const uint64_t requests = journal_.size() + on_the_wire_.size() + 1;
  return (options_.most_requests == 0 || requests <= options_.most_requests) &&
         (options_.most_tokens == 0 || tokens <= options_.most_tokens) &&
         (options_.most_cost <= 0 || cost <= options_.most_cost);
}

bool ChatRun::Take(const ChatRequest& request, const Done& done) {
  const std::string hash = HashOf(request);
  if (auto entry = journal_.Find(hash)) {
    ++totals_.known;
    done({.id = request.id, .hash = hash, .reply = std::move(entry->reply)});
    return true;
  }
  if (const auto twin = on_the_wire_.find(hash); twin != on_the_wire_.end()) {
    twin->second.twins.push_back(request.id);
    return true;
  }
  const ChatUsage most = {.prompt_tokens = EstimatePromptTokens(request),
                          .completion_tokens = MostAnswerTokens(request)};
  Reserved reserved{.tokens = most.tokens(), .cost = options_.prices.Of(most), .twins = {}};
  if (!Fits(reserved)) return false;
  on_the_wire_.emplace(hash, std::move(reserved));
  backend_.Submit(request);
  return true;
}

void ChatRun::Record(std::vector<ChatResult> results, const Done& done) {
  std::vector<ChatResult> answered, others;
  std::vector<double> costs;
  for (ChatResult& result : results) {
    if (result.attempts > 1) totals_.repeated += static_cast<uint64_t>(result.attempts - 1);
    if (result.end != ChatEnd::kAnswered) {
      others.push_back(std::move(result));
      continue;
    }
    costs.push_back(options_.prices.Of(result.reply->usage));
    answered.push_back(std::move(result));
  }
  if (!answered.empty()) journal_.Append(answered, costs);
  for (size_t i = 0; i < answered.size(); ++i) {
    ++totals_.answered;
    totals_.usage += answered[i].reply->usage;
    totals_.cost += costs[i];
    failures_in_a_row_ = 0;
    Deliver(std::move(answered[i]), done);
  }
  for (ChatResult& result : others) {
    if (result.end == ChatEnd::kFatal && fatal_.empty()) fatal_ = result.error;
    if (result.end == ChatEnd::kFailed) {
      // Requests like it were answered: a refusal is about itself alone, and the server is up.
      const bool alone = result.refused && totals_.answered + totals_.known > 0;
      failures_in_a_row_ = alone ? 0 : failures_in_a_row_ + 1;
      if (!alone && failures_in_a_row_ == options_.most_failures_in_a_row && fatal_.empty()) {
        fatal_ = std::to_string(failures_in_a_row_) +
                 " requests failed one after the other, the last with: " + result.error;
      }
    }
    Deliver(std::move(result), done);
  }
}

void ChatRun::Deliver(ChatResult result, const Done& done) {
  const auto place = on_the_wire_.extract(result.hash);
  if (result.end == ChatEnd::kStopped || result.end == ChatEnd::kFatal)
    return;  // asked again later
  const bool failed = result.end == ChatEnd::kFailed;
  if (failed) ++totals_.failed;
  done(result);
  if (place.empty()) return;
  result.attempts = 0;
  for (const std::string& twin : place.mapped().twins) {
    ++(failed ? totals_.failed : totals_.known);
    result.id = twin;
    done(result);
  }
}

std::string ChatRun::Spent() const {
  char text[96];
  if (options_.prices.prompt > 0 || options_.prices.completion > 0) {
    std::snprintf(text, sizeof(text), "cost %.2f", CostOf(journal_, options_.prices));
    std::string spent = text;
    if (options_.most_cost > 0) {
      std::snprintf(text, sizeof(text), " of %.2f", options_.most_cost);
      spent += text;
    }
    return spent;
  }
  std::string spent = ShortNumber(journal_.usage().tokens());
  if (options_.most_tokens > 0) spent += " of " + ShortNumber(options_.most_tokens);
  return spent + " tokens";
}

}  // namespace llava
