#include "model/data/instructions/record_survey.h"

#include <algorithm>
#include <exception>
#include <iterator>
#include <map>
#include <mutex>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "model/progress/for_each.h"
#include "model/progress/stop_request.h"

namespace llava {
namespace {

constexpr size_t kMostComplaints = 20;

int32_t CountWords(const InstructionRecord& record) {
  int32_t words = 0;
  for (const ChatMessage& message : record.messages) {
    std::istringstream stream(message.text);
    for (std::string word; stream >> word;) ++words;
  }
  return words;
}

uint64_t PictureOf(const InstructionRecord& record) {
  std::string names;
  for (const std::string& image : record.images) names += image + '\0';
  return names.empty() ? 0 : std::max<uint64_t>(1, std::hash<std::string>()(names));
}

// Sizes of its pictures, if they are looked into.
std::vector<Resolution> CheckPictures(const InstructionData& data, const InstructionRecord& record,
                                      const SurveyOptions& options) {
  std::vector<Resolution> sizes;
  for (const std::string& image : record.images) {
    const auto path = data.PicturePath(image);
    if (!data.HasPicture(image)) {
      throw BadRecord(BadRecordKind::kMissingPicture, "no picture " + path.string());
    }
    if (!options.picture_size) continue;
    try {
      sizes.push_back(options.picture_size(path));
    } catch (const std::invalid_argument& wrong) {
      throw BadRecord(BadRecordKind::kBrokenPicture, path.string() + ": " + wrong.what());
    }
  }
  return sizes;
}

RecordFacts FactsOf(const InstructionData& data, const SampleEncoder& encoder, int64_t number,
                    const SurveyOptions& options) {
  const InstructionRecord record = data.Read(number);
  try {
    const EncodedSample sample =
        encoder.Encode(record, /*epoch=*/0, CheckPictures(data, record, options));
    return {.tokens = static_cast<int32_t>(sample.tokens),
            .trained_tokens = static_cast<int32_t>(sample.trained_tokens),
            .words = CountWords(record),
            .image_tokens = static_cast<int32_t>(sample.image_tokens),
            .turns = sample.turns,
            .dropped_turns = sample.dropped_turns,
            .picture = PictureOf(record)};
  } catch (const BadRecord& bad) {
    throw BadRecord(bad.kind(), data.Name(number) + " (\"" + record.id + "\"): " + bad.what());
  }
}

}  // namespace

int64_t RecordSurvey::num_bad() const {
  return std::accumulate(bad.begin(), bad.end(), int64_t{0});
}

RecordSurvey SurveyRecords(const InstructionData& data, const SampleEncoder& encoder,
                           const SurveyOptions& options) {
  RecordSurvey survey;
  const int64_t size =
      options.most_records > 0 ? std::min(options.most_records, data.size()) : data.size();
  survey.facts.resize(size);
  std::mutex mutex;                           // guards what follows
  std::map<int64_t, std::string> complaints;  // about the lowest numbers
  int64_t done = 0;
  const auto look = [&](int64_t number) {
    StopRequest::ThrowIfRequested();
    try {
      survey.facts[number] = FactsOf(data, encoder, number, options);
    } catch (const BadRecord& bad) {
      const std::lock_guard lock(mutex);
      ++survey.bad[static_cast<int>(bad.kind())];
      complaints.emplace(number, bad.what());
      if (complaints.size() > kMostComplaints) complaints.erase(std::prev(complaints.end()));
    }
    const std::lock_guard lock(mutex);
    ++done;
    if (options.on_progress) options.on_progress(done);
  };
  ForEach(size, options.threads, [&] { return look; });
  for (int64_t number = 0; number < size; ++number) {
    if (survey.facts[number].tokens > 0) survey.usable.push_back(number);
  }
  for (auto& [number, complaint] : complaints) {
    survey.complaints.push_back(std::move(complaint));
  }
  return survey;
}

void RequireAllUsable(const RecordSurvey& survey) {
  const int64_t bad = survey.num_bad();
  if (bad == 0) return;
  std::string what = std::to_string(bad) + " of " + std::to_string(survey.facts.size()) +
                     " records cannot be used (--skip-bad leaves them out):";
  for (const std::string& complaint : survey.complaints) what += "\n  " + complaint;
  const int64_t untold = bad - static_cast<int64_t>(survey.complaints.size());
  if (untold > 0) what += "\n  and " + std::to_string(untold) + " more";
  throw std::runtime_error(what);
}

}  // namespace llava
