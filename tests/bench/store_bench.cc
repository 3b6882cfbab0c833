// What it costs to make a turn durable, beside what the disk asks for a sync.
//
//   llava_store_bench [--folder DIR] [--rounds 9] [--turns 400] [--json FILE]
//
// Turn by turn, in a folder of its own under DIR (default: the current one):
//   sync      4 KiB behind a file that grows, then fdatasync: what a commit of one page costs at
//   least rewrite   the same over bytes that are there: no change of the file's size has to be kept
//   1         one session asks and answers without a pause
//   64        64 sessions do so, each at its own times: about 500 questions a second
//   64 busy   64 sessions without a pause, which take as much processor as there is
// A question counts from the call of BeginTurn, on a thread of its session, to the store's
// callback. Medians of a round; of these, and of their ratios within the round, the medians over
// all rounds.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "server/gateway/session_store.h"

namespace llava {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSessions = 64, kEarlierTurns = 50;
constexpr double kPauseSeconds = 0.12;  // of each of 64 sessions, on average

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "llava_store_bench: %s\n", what.c_str());
  std::exit(1);
}

double Micros(Clock::time_point since) {
  return std::chrono::duration<double, std::micro>(Clock::now() - since).count();
}

double Median(std::vector<double> values) {
  if (values.empty()) Fail("nothing measured");
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Calls a request of the store and waits for its callback; returns when that came.
template <typename Result>
Clock::time_point Await(const std::function<void(std::function<void(Result)>)>& request) {
  std::promise<Clock::time_point> done;
  request([&done](const Result& result) {
    if (!result.ok()) Fail("the store refuses");
    done.set_value(Clock::now());
  });
  return done.get_future().get();
}

class Bench {
 public:
  Bench(std::filesystem::path folder, int turns)
      : folder_(std::move(folder)), turns_(turns), metrics_("gateway"), counters_(metrics_) {
    auto store = SessionStore::Open((folder_ / "store").string(), counters_, {});
    if (!store.ok()) Fail(std::string(store.status().message()));
    store_ = *std::move(store);
    for (int i = 0; i < kSessions; ++i) {
      v1::Session session;
      session.set_id(SessionId(i));
      Await<absl::StatusOr<v1::Session>>(
          [&](auto done) { store_->CreateSession(session, std::move(done)); });
    }
    Ask(kSessions, kEarlierTurns * kSessions, 0);
  }

  // Microseconds from question to durable, one for each of `count` turns of `sessions` sessions.
  std::vector<double> Ask(int sessions, int count, double pause_seconds) {
    std::vector<std::vector<double>> took(sessions);
    std::vector<std::thread> threads;
    for (int i = 0; i < sessions; ++i) {
      threads.emplace_back([&, i] {
        std::mt19937 random(i);
        std::exponential_distribution<double> pause(1 / std::max(pause_seconds, 1e-9));
        for (int turn = 0; turn < std::max(count / sessions, 1); ++turn) {
          if (pause_seconds > 0) {
            std::this_thread::sleep_for(std::chrono::duration<double>(pause(random)));
          }
          took[i].push_back(AskOnce(SessionId(i)));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<double> all;
    for (const auto& each : took) all.insert(all.end(), each.begin(), each.end());
    return all;
  }

  std::vector<double> Sync(bool grow) {
    const std::string path = (folder_ / "sync").string();
    const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) Fail(absl::StrCat("cannot open ", path));
    const std::string page(4096, 'x');
    std::vector<double> took;
    for (int i = 0; i < turns_ / 2; ++i) {
      const off_t place = grow ? lseek(file, 0, SEEK_END) : 0;
      const auto begin = Clock::now();
      if (pwrite(file, page.data(), page.size(), place) != static_cast<ssize_t>(page.size()) ||
          fdatasync(file) != 0) {
        Fail(absl::StrCat("cannot write ", path));
      }
      took.push_back(Micros(begin));
    }
    close(file);
    return took;
  }

 private:
  static std::string SessionId(int i) { return absl::StrCat("session-", i); }

  double AskOnce(const std::string& session) {
    NewTurn turn;
    turn.id = absl::StrCat("turn-", next_turn_++, "-of-", session);
    turn.session_id = session;
    turn.user_text = std::string(80, 'q');
    turn.model.set_name("emoji");
    turn.model.set_version(1);
    turn.model.set_digest(std::string(32, 'd'));
    turn.seed = 7;
    turn.sampling.set_max_new_tokens(100);
    turn.request = {turn.id, std::string(32, 'h')};
    TurnResult result;
    result.session_id = session;
    result.turn_id = turn.id;
    result.state = v1::TURN_STATE_FINISHED;
    result.reason = v1::FINISH_REASON_STOP;
    result.answer_text = std::string(400, 'a');
    result.tokens.set_tokenizer_digest(std::string(32, 't'));
    for (int i = 0; i < 100; ++i) result.tokens.add_ids(i);
    result.model = turn.model;
    const auto begin = Clock::now();
    const auto end = Await<absl::StatusOr<uint32_t>>(
        [&](auto done) { store_->BeginTurn(std::move(turn), std::move(done)); });
    Await<absl::Status>([&](auto done) { store_->FinishTurn(std::move(result), std::move(done)); });
    return std::chrono::duration<double, std::micro>(end - begin).count();
  }

  const std::filesystem::path folder_;
  const int turns_;
  Metrics metrics_;
  GatewayMetrics counters_;
  std::unique_ptr<SessionStore> store_;
  std::atomic<int64_t> next_turn_ = 0;
};

int Run(const std::filesystem::path& parent, int rounds, int turns, const std::string& json) {
  std::string folder = (parent / "llava-store-bench-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) Fail(absl::StrCat("cannot make ", folder));
  std::vector<std::pair<std::string, std::vector<double>>> rows = {
      {"sync", {}}, {"rewrite", {}}, {"1", {}}, {"64", {}}, {"64 busy", {}}};
  {
    Bench bench(folder, turns);
    for (int round = 0; round < rounds; ++round) {
      rows[0].second.push_back(Median(bench.Sync(/*grow=*/true)));
      rows[1].second.push_back(Median(bench.Sync(/*grow=*/false)));
      rows[2].second.push_back(Median(bench.Ask(1, turns, 0)));
      rows[3].second.push_back(Median(bench.Ask(kSessions, turns, kPauseSeconds)));
      rows[4].second.push_back(Median(bench.Ask(kSessions, 4 * turns, 0)));
    }
  }
  std::filesystem::remove_all(folder);
  nlohmann::json result;
  std::printf("%-10s %10s %8s %10s\n", "", "p50, us", "/ sync", "/ rewrite");
  for (const auto& [name, values] : rows) {
    std::vector<double> of_sync, of_rewrite;
    for (size_t i = 0; i < values.size(); ++i) {
      of_sync.push_back(values[i] / rows[0].second[i]);
      of_rewrite.push_back(values[i] / rows[1].second[i]);
    }
    result[name] = {{"p50_us", Median(values)},
                    {"of_sync", Median(of_sync)},
                    {"of_rewrite", Median(of_rewrite)}};
    std::printf("%-10s %10.1f %8.2f %10.2f\n", name.c_str(), Median(values), Median(of_sync),
                Median(of_rewrite));
  }
  if (!json.empty()) std::ofstream(json) << result.dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace llava

int main(int argc, char** argv) {
  std::string folder = ".", json;
  int rounds = 9, turns = 400;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (i + 1 == argc) llava::Fail(name + " needs a value");
    const std::string value = argv[++i];
    if (name == "--folder") {
      folder = value;
    } else if (name == "--rounds") {
      rounds = std::max(1, std::atoi(value.c_str()));
    } else if (name == "--turns") {
      turns = std::max(2, std::atoi(value.c_str()));
    } else if (name == "--json") {
      json = value;
    } else {
      llava::Fail("unknown option " + name);
    }
  }
  return llava::Run(folder, rounds, turns, json);
}
