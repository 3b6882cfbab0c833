#include "model/datagen/instruct.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <fstream>
#include <iterator>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "model/checkpoint/durable_file.h"
#include "model/data/scenes/random.h"
#include "model/data/scenes/stream_name.h"
#include "model/datagen/instruct_report.h"
#include "model/progress/progress.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// Purposes of random streams.
enum Purpose : uint64_t { kImageOrder = 201, kTaskOrder, kRecordWords, kExpansionWords };

constexpr char kRecords[] = "instruct.json", kRejected[] = "rejected.jsonl";

// What a file is called until it takes the place of an earlier run's.
std::string Partial(const std::string& name) { return name + ".partial"; }

constexpr size_t Index(ResponseType type) { return static_cast<size_t>(type); }

// Whole numbers in the proportions of `mix` that add up to `count`: largest remainders.
std::array<uint64_t, kResponseTypes.size()> Shares(const Mix& mix, uint64_t count) {
  const double total = std::accumulate(mix.begin(), mix.end(), 0.0);
  std::array<uint64_t, kResponseTypes.size()> shares{};
  std::array<std::pair<double, size_t>, kResponseTypes.size()> rest;  // biggest first
  uint64_t given = 0;
  for (size_t i = 0; i < mix.size(); ++i) {
    const double exact = static_cast<double>(count) * mix[i] / total;
    shares[i] = static_cast<uint64_t>(exact);
    given += shares[i];
    rest[i] = {static_cast<double>(shares[i]) - exact, i};
  }
  std::sort(rest.begin(), rest.end());
  for (size_t i = 0; given < count; ++i, ++given) ++shares[rest[i % rest.size()].second];
  return shares;
}

void CheckFolder(const fs::path& folder) {
  if (!fs::exists(folder)) {
    fs::create_directories(folder);
    return;
  }
  if (!fs::is_directory(folder)) throw std::invalid_argument(folder.string() + " is not a folder");
  if (fs::is_empty(folder)) return;
  // The last two: of a run, with its journal elsewhere, that was killed while it wrote.
  for (const std::string& name : {std::string("journal.jsonl"), std::string(kRecords),
                                  Partial(kRecords), Partial(kRecords) + ".part"}) {
    if (fs::exists(folder / name)) return;
  }
  throw std::invalid_argument(folder.string() +
                              " holds something else than instruction data; name another folder");
}

// Of a file that a run wrote: one a line, between the brackets. 0 if there is none.
uint64_t NumRecords(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  const auto lines = std::count(std::istreambuf_iterator<char>(file), {}, '\n');
  return static_cast<uint64_t>(std::max<std::ptrdiff_t>(0, lines - 2));
}

// Ids of the records for which an earlier run had no answer.
std::unordered_set<std::string> UnansweredBefore(const fs::path& rejected) {
  std::unordered_set<std::string> ids;
  std::ifstream file(rejected, std::ios::binary);
  for (std::string text; std::getline(file, text);) {
    const Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!line.is_object() || line.value("rule", Json()) != ToString(Rule::kUnanswered)) continue;
    if (const Json id = line.value("id", Json()); id.is_string()) ids.insert(id.get<std::string>());
  }
  return ids;
}

struct Planned {
  InstructTask task;
  std::string hash;    // of its request
  bool known = false;  // by the journal, from the beginning
};

// One run over the plan.
class Run {
 public:
  Run(const std::vector<CaptionedImage>& images, const PromptSet& prompts,
      const InstructOptions& options, ChatJournal& journal)
      : images_(images), prompts_(prompts), options_(options), journal_(journal) {
    for (const InstructTask& task :
         PlanTasks(images.size(), options.mix, options.count, options.seed)) {
      const std::string hash = HashOf(RequestFor(task));
      plan_.push_back({task, hash, journal.Holds(hash)});
      known_ += plan_.back().known;
    }
  }

  // Throws as ChatRun::Run.
  ChatRun::Outcome Ask(ChatBackend& teacher, std::FILE* stream) {
    ChatRun run(teacher, journal_, options_.run);
    Progress progress(stream, "asking", plan_.size(), known_);
    uint64_t done = 0, known = 0;  // all that has ended; of it what the journal knew
    size_t next = 0;
    const auto shown = [&] { return known_ + done - known; };
    try {
      const auto outcome = run.Run(
          [&]() -> std::optional<ChatRequest> {
            if (next == plan_.size()) return std::nullopt;
            known += plan_[next].known;
            return RequestFor(plan_[next++].task);
          },
          [&](const ChatResult& result) {
            ++done;
            if (!result.reply) errors_[result.hash] = last_error_ = result.error;
          },
          [&] {
            progress.set_note(run.Spent() +
                              (run.totals().failed > 0
                                   ? ", " + std::to_string(run.totals().failed) + " failed"
                                   : ""));
            progress.Update(shown());
          });
      progress.set_note(run.Spent());
      progress.Finish(shown());
      totals_ = run.totals();
      return outcome;
    } catch (...) {
      totals_ = run.totals();
      throw;
    }
  }

  bool HasAnswers() const { return known_ + totals_.answered > 0; }
  uint64_t planned() const { return plan_.size(); }
  uint64_t failed() const { return totals_.failed; }

  // Tells of requests without an answer; throws if there is no answer at all.
  void TellFailures(std::FILE* stream) const {
    if (totals_.failed == 0) return;
    if (!HasAnswers()) {
      throw std::runtime_error("no request was answered; the last failed with: " + last_error_);
    }
    std::fprintf(stream,
                 "%llu requests failed, the last with: %s\n"
                 "rejected.jsonl names them, and the same command asks them again\n",
                 static_cast<unsigned long long>(totals_.failed), last_error_.c_str());
  }

  // What there is, as files beside those of an earlier run, which they replace (true) unless that
  // had more records and this run is not whole: it did not come to its end, or has no answer where
  // the earlier one had.
  bool Write(bool finished, std::FILE* stream) const {
    InstructReport report(Facts(finished));
    StagedFile records(Place(Partial(kRecords))), rejected(Place(Partial(kRejected)));
    const std::unordered_set<std::string> unanswered_before = UnansweredBefore(Place(kRejected));
    bool whole = finished;
    const QualityGates gates(prompts_, options_.language);
    Deduplicator dialogues;
    const char* separator = "[\n";
    for (const Planned& planned : plan_) {
      const CaptionedImage& image = images_[planned.task.image];
      const ResponseType type = planned.task.type;
      const std::string id = IdOf(planned.task);
      const auto entry = journal_.Find(planned.hash);
      Screened screened;
      if (entry) {
        screened = gates.Screen(type, entry->reply);
      } else {
        const auto error = errors_.find(planned.hash);
        screened.rejected = Rule::kUnanswered;
        screened.detail = error == errors_.end() ? "not asked yet" : error->second;
        whole = whole && unanswered_before.contains(id);
      }
      if (!screened.rejected && !dialogues.Add(image.id, screened.turns)) {
        screened.rejected = Rule::kDuplicate;
        screened.detail = "the same as an earlier record";
      }
      if (screened.rejected) {
        report.AddRejected(type, *screened.rejected, id, screened.detail);
        const Json line = {{"id", id},
                           {"rule", ToString(*screened.rejected)},
                           {"detail", screened.detail},
                           {"text", entry ? entry->reply.text : ""}};
        rejected.Write(line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
        continue;
      }
      Random random(options_.seed, StreamNamed(id), kRecordWords);
      if (type == ResponseType::kDetail) {
        screened.turns[0].question = random.Pick(options_.detailed_questions);
      }
      const bool image_first = random.Chance(0.5);
      report.AddKept(type, screened, image_first);
      Json record = InstructionRecordJson(image.id, image.file, screened.turns, image_first);
      record["type"] = ToString(type);
      records.Write(separator);
      records.Write(record.dump(-1, ' ', false, Json::error_handler_t::replace));
      separator = ",\n";
    }
    records.Write(report.kept() == 0 ? "[]\n" : "\n]\n");
    records.Commit();
    rejected.Commit();
    WriteText("report.json",
              report.ToJson().dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    WriteText("report.md", report.ToMarkdown());
    const uint64_t before = whole ? 0 : NumRecords(Place(kRecords));
    if (report.kept() < before) {
      std::fprintf(stream,
                   "%s has %llu records of an earlier run and is left as it is; the %llu of this "
                   "one, which is not whole, are in %s\n",
                   Place(kRecords).c_str(), static_cast<unsigned long long>(before),
                   static_cast<unsigned long long>(report.kept()),
                   Place(Partial(kRecords)).c_str());
      return false;
    }
    for (const char* name : {kRecords, kRejected, "report.json", "report.md"}) {
      fs::rename(Place(Partial(name)), Place(name));
    }
    SyncFolder(options_.out);
    return true;
  }

 private:
  std::string IdOf(const InstructTask& task) const {
    return std::string(ToString(task.type)) + "-" + images_[task.image].id;
  }

  ChatRequest RequestFor(const InstructTask& task) const {
    ChatRequest request = options_.request;
    request.id = IdOf(task);
    request.messages =
        prompts_.Messages(task.type, images_[task.image], options_.boxes[Index(task.type)]);
    return request;
  }

  Json Facts(bool finished) const {
    std::unordered_set<uint32_t> used;
    for (const Planned& planned : plan_) used.insert(planned.task.image);
    return {{"teacher", options_.request.model},
            {"finished", finished},
            {"pictures", images_.size()},
            {"pictures_used", used.size()},
            {"records_planned", plan_.size()},
            {"answers_known", totals_.known},
            {"answers_new", totals_.answered},
            {"requests_failed", totals_.failed},
            {"attempts_repeated", totals_.repeated},
            {"prompt_tokens", journal_.usage().prompt_tokens},
            {"answer_tokens", journal_.usage().completion_tokens},
            {"cost", CostOf(journal_, options_.run.prices)}};
  }

  fs::path Place(const std::string& name) const { return options_.out / name; }

  void WriteText(const char* name, const std::string& text) const {
    StagedFile file(Place(Partial(name)));
    file.Write(text);
    file.Commit();
  }

  const std::vector<CaptionedImage>& images_;
  const PromptSet& prompts_;
  const InstructOptions& options_;
  ChatJournal& journal_;
  std::vector<Planned> plan_;
  uint64_t known_ = 0;
  std::unordered_map<std::string, std::string> errors_;  // of failed requests, by hash
  std::string last_error_;
  ChatRun::Totals totals_;
};

}  // namespace

std::vector<InstructTask> PlanTasks(size_t num_images, const Mix& mix, uint64_t count,
                                    uint64_t seed) {
  if (num_images == 0) throw std::invalid_argument("no pictures with captions");
  const double total = std::accumulate(mix.begin(), mix.end(), 0.0);
  if (!(total > 0) || !std::isfinite(total) || *std::min_element(mix.begin(), mix.end()) < 0) {
    throw std::invalid_argument(
        "a mix needs shares of 0 and above, not all of them 0, whose sum "
        "is a number");
  }
  const auto shares = Shares(mix, count == 0 ? num_images : count);
  std::vector<uint32_t> order(num_images);
  std::iota(order.begin(), order.end(), 0u);
  Random(seed, 0, kImageOrder).Shuffle(order);
  std::vector<InstructTask> tasks;
  double begin = 0;  // of a type, as a share of the ring of pictures
  for (size_t i = 0; i < shares.size(); ++i) {
    if (shares[i] > num_images) {
      throw std::invalid_argument(
          std::to_string(shares[i]) + " records of the type " + ToString(kResponseTypes[i]) +
          " from " + std::to_string(num_images) + " pictures: there can be one of each");
    }
    const auto first = static_cast<size_t>(begin * static_cast<double>(num_images) + 0.5);
    for (uint64_t n = 0; n < shares[i]; ++n) {
      tasks.push_back({order[(first + n) % num_images], kResponseTypes[i]});
    }
    begin += mix[i] / total;
  }
  Random(seed, 0, kTaskOrder).Shuffle(tasks);
  return tasks;
}

InstructEnd WriteInstructions(const std::vector<CaptionedImage>& images, const PromptSet& prompts,
                              ChatBackend& teacher, const InstructOptions& options,
                              std::FILE* progress) {
  if (options.detailed_questions.empty()) throw std::invalid_argument("no detailed questions");
  CheckFolder(options.out);
  ChatJournal journal(options.journal.empty() ? options.out / "journal.jsonl" : options.journal);
  if (journal.dropped_bytes() > 0) {
    std::fprintf(progress, "%s: dropped a torn last line of %llu bytes\n", journal.path().c_str(),
                 static_cast<unsigned long long>(journal.dropped_bytes()));
  }
  Run run(images, prompts, options, journal);
  InstructEnd end;
  try {
    end.outcome = run.Ask(teacher, progress);
  } catch (const std::runtime_error&) {  // what was answered before still counts
    try {
      if (run.HasAnswers()) run.Write(/*finished=*/false, progress);
    } catch (const std::exception& error) {
      std::fprintf(progress, "what was answered could not be written: %s\n", error.what());
    }
    throw;
  }
  if (end.outcome == ChatRun::Outcome::kStopped) return end;
  end.replaced = run.Write(end.outcome == ChatRun::Outcome::kFinished, progress);
  run.TellFailures(progress);
  end.planned = run.planned();
  end.failed = run.failed();
  return end;
}

void WriteExpansion(const std::vector<CaptionedImage>& images,
                    const std::vector<std::string>& brief_questions, uint64_t seed,
                    const fs::path& path) {
  if (brief_questions.empty()) throw std::invalid_argument("no brief questions");
  StagedFile file(path);
  const char* separator = "[\n";
  for (const CaptionedImage& image : images) {
    Random random(seed, StreamNamed(image.id), kExpansionWords);
    const QuestionAnswer turn = {random.Pick(brief_questions), random.Pick(image.captions)};
    file.Write(separator);
    file.Write(InstructionRecordJson(image.id, image.file, {turn}, random.Chance(0.5))
                   .dump(-1, ' ', false, Json::error_handler_t::replace));
    separator = ",\n";
  }
  file.Write(images.empty() ? "[]\n" : "\n]\n");
  file.Commit();
}

}  // namespace llava
