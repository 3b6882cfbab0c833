#include "server/runtime/failpoint.h"

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/runtime/mutex.h"

namespace llava {
namespace {

struct Rule {
  enum class Action { kError, kKill, kSleep };
  Action action = Action::kError;
  int sleep_ms = 0;
  int64_t at = 0;  // 0: every time
  int64_t hits = 0;
};

[[noreturn]] void BadRule(const std::string& rule) {
  std::fprintf(stderr, "LLAVA_FAILPOINTS: cannot read \"%s\"\n", rule.c_str());
  std::_Exit(2);
}

Rule ParseRule(const std::string& text) {
  Rule rule;
  const std::vector<std::string> parts = absl::StrSplit(text, '@');
  if (parts.size() > 2) BadRule(text);
  if (parts.size() == 2 && (!absl::SimpleAtoi(parts[1], &rule.at) || rule.at < 1)) BadRule(text);
  const std::vector<std::string> action = absl::StrSplit(parts[0], ':');
  if (action[0] == "kill" && action.size() == 1) {
    rule.action = Rule::Action::kKill;
  } else if (action[0] == "sleep" && action.size() == 2) {
    rule.action = Rule::Action::kSleep;
    if (!absl::SimpleAtoi(action[1], &rule.sleep_ms)) BadRule(text);
  } else if (parts[0] != "error") {
    BadRule(text);
  }
  return rule;
}

std::map<std::string, Rule, std::less<>> ReadRules() {
  std::map<std::string, Rule, std::less<>> rules;
  const char* setting = std::getenv("LLAVA_FAILPOINTS");
  if (setting == nullptr) return rules;
  for (const absl::string_view each : absl::StrSplit(setting, ';', absl::SkipEmpty())) {
    const std::vector<std::string> pair = absl::StrSplit(each, '=');
    if (pair.size() != 2 || pair[0].empty()) BadRule(std::string(each));
    rules[pair[0]] = ParseRule(pair[1]);
  }
  return rules;
}

}  // namespace

absl::Status HitFailpoint(std::string_view name) {
  static Mutex mutex;
  static std::map<std::string, Rule, std::less<>> rules = ReadRules();
  Rule rule;
  {
    MutexLock lock(mutex);
    const auto found = rules.find(name);
    if (found == rules.end()) return absl::OkStatus();
    ++found->second.hits;
    rule = found->second;
  }
  if (rule.at != 0 && rule.hits != rule.at) return absl::OkStatus();
  switch (rule.action) {
    case Rule::Action::kKill:
      kill(getpid(), SIGKILL);
      break;
    case Rule::Action::kSleep:
      std::this_thread::sleep_for(std::chrono::milliseconds(rule.sleep_ms));
      return absl::OkStatus();
    case Rule::Action::kError:
      break;
  }
  return absl::InternalError(absl::StrCat("failpoint ", std::string(name)));
}

}  // namespace llava
