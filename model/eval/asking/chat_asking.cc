#include "model/eval/asking/chat_asking.h"

#include <algorithm>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>

#include "model/checkpoint/durable_file.h"
#include "model/progress/progress.h"
#include "model/progress/stop_request.h"

namespace llava {
namespace {

// 0 if there is no file.
std::ptrdiff_t NumLines(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::count(std::istreambuf_iterator<char>(file), {}, '\n');
}

}  // namespace

void TellFailures(const char* program, const std::vector<std::string>& failures, std::FILE* to) {
  constexpr size_t kShown = 5;
  for (size_t i = 0; i < std::min(kShown, failures.size()); ++i) {
    std::fprintf(to, "%s: %s\n", program, failures[i].c_str());
  }
  if (failures.size() > kShown) {
    std::fprintf(to, "%s: .. and %zu more failed\n", program, failures.size() - kShown);
  }
}

int ChatAnswers::Report(const char* program, std::FILE* to) const {
  TellFailures(program, failures, to);
  std::fprintf(to, "%llu answered now, %llu known before, %llu failed, %llu attempts repeated",
               static_cast<unsigned long long>(totals.answered),
               static_cast<unsigned long long>(totals.known),
               static_cast<unsigned long long>(totals.failed),
               static_cast<unsigned long long>(totals.repeated));
  std::fprintf(to, "; %llu tokens, cost %.2f\n",
               static_cast<unsigned long long>(totals.usage.tokens()), totals.cost);
  if (!fatal.empty()) {
    std::fprintf(to, "%s: %s\n", program, fatal.c_str());
    return 1;
  }
  if (outcome == ChatRun::Outcome::kStopped) return 128 + StopRequest::Signal();
  if (outcome == ChatRun::Outcome::kBudget) {
    std::fprintf(to, "%s: the budget is spent; a run with a larger one goes on\n", program);
    return 3;
  }
  return failures.empty() ? 0 : 1;
}

void WriteOutcome(const ChatAnswers& answers, const std::filesystem::path& out,
                  const std::string& lines, std::FILE* to) {
  const bool whole = answers.fatal.empty() && answers.failures.empty() &&
                     answers.outcome == ChatRun::Outcome::kFinished;
  const std::filesystem::path partial = out.string() + ".partial";
  const auto now = std::count(lines.begin(), lines.end(), '\n');
  const auto before = whole ? 0 : NumLines(out);
  if (now == 0 && !whole && !std::filesystem::exists(out)) return;  // nothing to tell
  if (now >= before) {
    WriteDurably(out, lines);
    std::filesystem::remove(partial);
    return;
  }
  WriteDurably(partial, lines);
  std::fprintf(to,
               "%s has %lld lines from an earlier run and is left as it is; the %lld of this "
               "one are in %s\n",
               out.c_str(), static_cast<long long>(before), static_cast<long long>(now),
               partial.c_str());
}

ChatAnswers AskChat(const ChatFlags& flags, const std::filesystem::path& journal_path, size_t count,
                    const std::function<ChatRequest(size_t)>& make, const std::string& verb,
                    std::FILE* progress) {
  const std::unique_ptr<ChatBackend> backend = flags.OpenBackend();
  ChatJournal journal(journal_path);
  ChatRun run(*backend, journal, flags.RunOptions());
  Progress bar(progress, verb, count);
  ChatAnswers answers;
  size_t next = 0, ended = 0, not_made = 0;
  const auto take = [&]() -> std::optional<ChatRequest> {
    while (next < count) {
      try {
        return make(next++);
      } catch (const std::exception& error) {  // of this question; the others can be asked
        answers.failures.emplace_back(error.what());
        ++not_made;
        ++ended;
      }
    }
    return std::nullopt;
  };
  std::set<std::string> found;  // in the journal, by hash
  const auto done = [&](const ChatResult& result) {
    ++ended;
    if (result.reply) {
      answers.replies[result.id] = *result.reply;
      found.insert(result.hash);
    } else {
      answers.failures.push_back("question " + result.id + ": " + result.error);
    }
  };
  const auto tick = [&] {
    bar.set_note(run.Spent());
    bar.set_skipped(run.totals().known);
    bar.Update(ended);
  };
  try {
    answers.outcome = run.Run(take, done, tick);
  } catch (const std::runtime_error& error) {
    // What was answered before still counts.
    answers.fatal = error.what();
  }
  bar.set_skipped(run.totals().known);
  bar.Finish(ended);
  answers.totals = run.totals();
  answers.totals.failed += not_made;
  // After an early end: what the journal has of the others, until all of it has been met.
  while (next < count && found.size() < journal.size()) {
    ChatRequest request;
    try {
      request = make(next++);
    } catch (const std::exception&) {  // not asked: a next run tells
      continue;
    }
    const std::string hash = HashOf(request);
    auto entry = journal.Find(hash);
    if (!entry) continue;
    answers.replies[request.id] = std::move(entry->reply);
    found.insert(hash);
    ++answers.totals.known;
  }
  return answers;
}

}  // namespace llava
