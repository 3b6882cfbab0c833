// What it costs to make a turn durable, beside what the disk asks for a sync.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <queue>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "server/gateway/session_store.h"
#include "server/gateway/turn_id.h"
#include "tests/bench/usage.h"

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

std::exponential_distribution<double> Pause(double seconds) {
  return std::exponential_distribution<double>(1 / std::max(seconds, 1e-9));
}

int OpenFile(const std::string& path) {
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) Fail(absl::StrCat("cannot open ", path));
  return file;
}

void WriteDurably(int file, const std::string& bytes, off_t place) {
  if (pwrite(file, bytes.data(), bytes.size(), place) != static_cast<ssize_t>(bytes.size()) ||
      fdatasync(file) != 0) {
    Fail("cannot write");
  }
}

// Microseconds of each of `count` questions of `sessions` threads, as `ask(session)` measures them.
std::vector<double> Ask(int sessions, int count, double pause_seconds,
                        const std::function<double(int)>& ask) {
  std::vector<std::vector<double>> took(sessions);
  std::vector<std::thread> threads;
  for (int i = 0; i < sessions; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937 random(i);
      auto pause = Pause(pause_seconds);
      for (int turn = 0; turn < std::max(count / sessions, 1); ++turn) {
        if (pause_seconds > 0) {
          std::this_thread::sleep_for(std::chrono::duration<double>(pause(random)));
        }
        took[i].push_back(ask(i));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<double> all;
  for (const auto& each : took) all.insert(all.end(), each.begin(), each.end());
  return all;
}

// What `Ask` would give if nothing took time but a group commit's syncs, drawn from `syncs`.
std::vector<double> Queue(int sessions, int count, double pause_seconds,
                          const std::vector<double>& syncs) {
  struct Append {
    double at;  // microseconds
    bool question;
    bool operator<(const Append& other) const { return at > other.at; }  // first on top
  };
  std::mt19937 random(7);
  auto pause = Pause(pause_seconds * 1e6);
  std::priority_queue<Append> coming;
  for (int i = 0; i < sessions; ++i) coming.push({pause(random), true});
  std::vector<double> took;
  for (double now = 0; static_cast<int>(took.size()) < count;) {
    now = std::max(now, coming.top().at);
    std::vector<Append> batch;
    for (; !coming.empty() && coming.top().at <= now; coming.pop()) batch.push_back(coming.top());
    now += syncs[random() % syncs.size()];
    for (const Append& each : batch) {
      if (each.question) took.push_back(now - each.at);
      coming.push({each.question ? now : now + pause(random), !each.question});
    }
  }
  return took;
}

// The simplest group commit. Thread-safe.
class PlainLog {
 public:
  explicit PlainLog(const std::string& path) : file_(OpenFile(path)) {
    WriteDurably(file_, std::string(kBytes, 'x'), 0);
  }
  ~PlainLog() { close(file_); }

  // Returns when the record was durable.
  Clock::time_point Append() {
    constexpr Clock::time_point kNotYet{};
    Clock::time_point end = kNotYet;
    std::unique_lock<std::mutex> lock(mutex_);
    waiting_.push_back(&end);
    changed_.wait(lock, [&] { return end != kNotYet || !writing_; });
    if (end != kNotYet) return end;
    writing_ = true;
    const auto batch = std::exchange(waiting_, {});
    lock.unlock();
    const off_t size = static_cast<off_t>(batch.size()) * kRecordBytes;
    if (place_ + size > kBytes) place_ = 0;
    WriteDurably(file_, std::string(size, 'r'), place_);
    place_ += size;
    const auto now = Clock::now();
    lock.lock();
    for (Clock::time_point* each : batch) *each = now;
    writing_ = false;
    changed_.notify_all();
    return now;
  }

 private:
  static constexpr off_t kBytes = 4 << 20, kRecordBytes = 512;

  const int file_;
  off_t place_ = 0;  // of whoever has set writing_
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Clock::time_point*> waiting_;
  bool writing_ = false;
};

class Bench {
 public:
  Bench(std::filesystem::path folder, int turns)
      : folder_(std::move(folder)),
        turns_(turns),
        log_((folder_ / "log").string()),
        metrics_("gateway"),
        counters_(metrics_) {
    auto store = SessionStore::Open((folder_ / "store").string(), counters_, {});
    if (!store.ok()) Fail(std::string(store.status().message()));
    store_ = *std::move(store);
    for (int i = 0; i < kSessions; ++i) {
      v1::Session session;
      session.set_id(SessionId(i));
      Await<absl::StatusOr<v1::Session>>(
          [&](auto done) { store_->CreateSession(session, std::move(done)); });
    }
    AskStore(kSessions, kEarlierTurns * kSessions, 0);
  }

  // Microseconds from question to durable.
  std::vector<double> AskStore(int sessions, int count, double pause_seconds) {
    return Ask(sessions, count, pause_seconds, [this](int i) { return AskOnce(SessionId(i)); });
  }
  std::vector<double> AskLog(int sessions, int count, double pause_seconds) {
    return Ask(sessions, count, pause_seconds, [this](int) {
      const auto begin = Clock::now();
      const auto end = log_.Append();
      log_.Append();  // the answer
      return std::chrono::duration<double, std::micro>(end - begin).count();
    });
  }

  std::vector<double> Sync(bool grow, double pause_seconds = 0) {
    const int file = OpenFile((folder_ / "sync").string());
    const std::string page(4096, 'x');
    std::mt19937 random(1);
    auto pause = Pause(pause_seconds);
    std::vector<double> took;
    for (int i = 0; i < turns_ / 2; ++i) {
      const off_t place = grow ? lseek(file, 0, SEEK_END) : 0;
      if (pause_seconds > 0) {
        std::this_thread::sleep_for(std::chrono::duration<double>(pause(random)));
      }
      const auto begin = Clock::now();
      WriteDurably(file, page, place);
      took.push_back(Micros(begin));
    }
    close(file);
    return took;
  }

 private:
  static std::string SessionId(int i) { return absl::StrCat("session-", i); }

  double AskOnce(const std::string& session) {
    NewTurn turn;
    turn.id = NewTurnId();
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
  PlainLog log_;
  Metrics metrics_;
  GatewayMetrics counters_;
  std::unique_ptr<SessionStore> store_;
};

int Run(const std::filesystem::path& parent, int rounds, int turns, const std::string& json) {
  std::string folder = (parent / "llava-store-bench-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) Fail(absl::StrCat("cannot make ", folder));
  struct Load {
    std::string name;
    int sessions, count;
    double pause_seconds;
  };
  const Load loads[] = {{"1", 1, turns, 0},
                        {"64", kSessions, turns, kPauseSeconds},
                        {"64 busy", kSessions, 4 * turns, 0}};
  std::vector<std::string> names = {"sync", "rewrite", "paced"};  // as they are printed
  for (const Load& load : loads) {
    for (const char* what : {"", ": least", ": queue"}) names.push_back(load.name + what);
  }
  std::map<std::string, std::vector<double>> rows;
  {
    Bench bench(folder, turns);
    for (int round = 0; round < rounds; ++round) {
      rows["sync"].push_back(Median(bench.Sync(/*grow=*/true)));
      const auto rewrites = bench.Sync(/*grow=*/false);
      const auto paced = bench.Sync(/*grow=*/false, 0.001);
      rows["rewrite"].push_back(Median(rewrites));
      rows["paced"].push_back(Median(paced));
      for (const auto& [name, sessions, count, pause] : loads) {
        rows[name].push_back(Median(bench.AskStore(sessions, count, pause)));
        rows[name + ": least"].push_back(Median(bench.AskLog(sessions, count, pause)));
        rows[name + ": queue"].push_back(
            Median(Queue(sessions, count, pause, pause > 0 ? paced : rewrites)));
      }
    }
  }
  std::filesystem::remove_all(folder);
  nlohmann::json result;
  std::printf("%-16s %8s %8s %9s %8s %8s\n", "", "p50, us", "/ sync", "/ rewrite", "/ paced",
              "/ least");
  for (const std::string& name : names) {
    const std::vector<double>& values = rows.at(name);
    result[name]["p50_us"] = Median(values);
    std::printf("%-16s %8.1f", name.c_str(), Median(values));
    for (const std::string floor : {"sync", "rewrite", "paced", "least"}) {
      const auto row = rows.find(floor == "least" ? name + ": least" : floor);
      if (row == rows.end()) continue;
      std::vector<double> ratios;
      for (size_t i = 0; i < values.size(); ++i) ratios.push_back(values[i] / row->second[i]);
      result[name]["of_" + floor] = Median(ratios);
      std::printf(" %8.2f", Median(ratios));
    }
    std::printf("\n");
  }
  if (!json.empty()) std::ofstream(json) << result.dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace llava

namespace {

constexpr char kUsage[] =
    R"(What it costs to make a turn durable, beside what the disk asks for a sync.

  llava_store_bench [--folder DIR] [--rounds 9] [--turns 400] [--json FILE]

Turn by turn, in a folder of its own under DIR (default: the current one):
  sync      4 KiB behind a file that grows, then fdatasync: what a commit of one page costs at
            least
  rewrite   the same over bytes that are there: no change of the file's size has to be kept
  paced     the same after pauses of a millisecond on average: neither disk nor processor is warm
  1         one session asks and answers without a pause
  64        64 sessions do so, each at its own times: about 500 questions a second
  64 busy   64 sessions without a pause, which take as much processor as there is
A question counts from the call of BeginTurn, on a thread of its session, to the store's
callback. Below each of these, for the same sessions and pauses:
  least     the simplest group commit there can be, without a database: who finds nobody writing
            writes a record for each that waits, in one piece, and syncs. No store is quicker
            here.
  queue     computed: if nothing but the syncs as measured took time ("paced" where they pause)
Medians of a round; of these, and of their ratios within the round, the medians over all rounds.
)";

}  // namespace

int main(int argc, char** argv) {
  if (llava::bench::PrintedUsage(argc, argv, kUsage)) return 0;
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
