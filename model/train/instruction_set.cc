#include "model/train/instruction_set.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <utility>

#include "model/progress/progress.h"
#include "model/train/picture_sizes.h"
#include "model/train/record_facts_file.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

Json FilesAsJson(const std::vector<std::filesystem::path>& files) {
  Json names = Json::array();
  for (const auto& file : files) names.push_back(file.string());
  return names;
}

// What of the data is not trained, in words; empty: all is. `report`: of the survey.
std::string LeftOut(const RecordSurvey& survey, const Json& report) {
  std::string text;
  if (const int64_t bad = survey.num_bad(); bad > 0) {
    std::string kinds;
    for (const auto& [kind, count] : report["bad"].items()) {
      kinds += (kinds.empty() ? "" : ", ") + kind + " " + std::to_string(count.get<int64_t>());
    }
    text = std::to_string(bad) + " of " + std::to_string(survey.facts.size()) +
           " records left out (" + kinds + "), the first: " + survey.complaints.front();
  }
  if (const auto shortened = report["shortened_records"].get<int64_t>(); shortened > 0) {
    text += (text.empty() ? "" : "; ") + std::to_string(shortened) +
            " too long records lost their last " +
            std::to_string(report["dropped_turns"].get<int64_t>()) + " turns";
  }
  return text;
}

}  // namespace

InstructionSet::InstructionSet(const Options& options, const SampleEncoder& encoder,
                               std::FILE* progress)
    : options_(options), encoder_(encoder), data_(options.files, options.images) {
  RecordSurvey survey = Survey(options.decode, progress);
  report_ = Report(survey);
  const std::string left_out = LeftOut(survey, report_);
  if (progress != nullptr && !left_out.empty()) {
    std::fprintf(progress, "llava-train: %s: %s\n", options_.name.c_str(), left_out.c_str());
  }
  plan_ = std::make_unique<const RowPlan>(survey, options_.plan);
  facts_ = std::move(survey.facts);
}

void InstructionSet::KeepPlan(const std::filesystem::path& file, bool resumes,
                              std::FILE* progress) {
  if (!resumes || !std::filesystem::exists(file)) {
    SaveFacts(file, facts_);
    return;
  }
  RecordSurvey before;
  before.facts = ReadFacts(file);
  const auto refuse = [this](const std::string& what) {
    throw std::invalid_argument(
        what + " when this run began; give the same data to go on, or choose another folder");
  };
  if (before.facts.size() != facts_.size()) {
    refuse("the " + options_.name + " has " + std::to_string(facts_.size()) + " records, it had " +
           std::to_string(before.facts.size()));
  }
  int64_t gone = 0, come = 0, first_gone = -1;
  for (int64_t number = 0; number < std::ssize(facts_); ++number) {
    const RecordFacts &then = before.facts[number], &now = facts_[number];
    if (then.tokens > 0) before.usable.push_back(number);
    if (then.tokens > 0 && now.tokens == 0 && gone++ == 0) first_gone = number;
    come += then.tokens == 0 && now.tokens > 0;
    const bool same = then.words == now.words && (then.picture == 0) == (now.picture == 0);
    if (then.tokens > 0 && now.tokens > 0 && !same) {
      refuse(data_.Name(number) + " was another");
    }
  }
  constexpr int64_t kFew = 100, kShare = 20;  // a twentieth
  const auto began_with = static_cast<int64_t>(before.usable.size());
  if (gone > std::max(kFew, began_with / kShare)) {
    throw std::runtime_error(std::to_string(gone) + " of the " + std::to_string(began_with) +
                             " records that this run began with cannot be used any more, the "
                             "first: " +
                             data_.Name(first_gone) +
                             ": are all pictures there? The same command goes on once they are");
  }
  plan_ = std::make_unique<const RowPlan>(before, options_.plan);
  if (progress == nullptr || gone + come == 0) return;
  std::fprintf(progress,
               "llava-train: %s: goes on in the order that it began with: %lld records of it "
               "cannot be used any more, %lld that now could be stay left out\n",
               options_.name.c_str(), static_cast<long long>(gone), static_cast<long long>(come));
}

RecordSurvey InstructionSet::Survey(bool decode, std::FILE* progress) const {
  SurveyOptions options;
  options.threads = options_.threads;
  options.most_records = options_.most_records;
  PictureSizes sizes(decode);
  options.picture_size = std::ref(sizes);
  const int64_t records =
      options_.most_records > 0 ? std::min(options_.most_records, data_.size()) : data_.size();
  Progress bar(progress, "reading " + options_.name, records);
  options.on_progress = [&](int64_t done) { bar.Update(done); };
  RecordSurvey survey = SurveyRecords(data_, encoder_, options);
  bar.Finish(records);
  if (!options_.skip_bad) RequireAllUsable(survey);
  if (survey.usable.empty()) {
    throw std::runtime_error("the " + options_.name + " (" + options_.files.front().string() +
                             ") has no record that can be used, of " + std::to_string(records));
  }
  return survey;
}

Json InstructionSet::Check(std::FILE* progress) const {
  return Report(Survey(/*decode=*/true, progress));
}

Json InstructionSet::Report(const RecordSurvey& survey) const {
  int64_t with_picture = 0, turns = 0, shortened = 0, dropped = 0, tokens = 0, image_tokens = 0;
  int64_t trained = 0, longest = 0;
  std::unordered_set<uint64_t> pictures;
  for (const int64_t number : survey.usable) {
    const RecordFacts& facts = survey.facts[number];
    with_picture += facts.picture != 0;
    if (facts.picture != 0) pictures.insert(facts.picture);
    turns += facts.turns;
    shortened += facts.dropped_turns > 0;
    dropped += facts.dropped_turns;
    tokens += facts.tokens;
    image_tokens += facts.image_tokens;
    trained += facts.trained_tokens;
    longest = std::max<int64_t>(longest, facts.tokens);
  }
  Json bad = Json::object();
  for (int i = 0; i < kNumBadRecordKinds; ++i) {
    if (survey.bad[i] > 0) bad[ToString(static_cast<BadRecordKind>(i))] = survey.bad[i];
  }
  const auto usable = static_cast<int64_t>(survey.usable.size());
  return {{"files", FilesAsJson(options_.files)},
          {"records", survey.facts.size()},
          {"usable", usable},
          {"bad", bad},
          {"complaints", survey.complaints},
          {"with_picture", with_picture},
          {"text_only", usable - with_picture},
          {"pictures", pictures.size()},
          {"turns", turns},
          {"shortened_records", shortened},
          {"dropped_turns", dropped},
          {"tokens", tokens},
          {"image_tokens", image_tokens},
          {"trained_tokens", trained},
          {"longest_sample_tokens", longest},
          {"rows_per_epoch", RowPlan(survey, options_.plan).rows()}};
}

}  // namespace llava
