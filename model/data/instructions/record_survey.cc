#include "model/data/instructions/record_survey.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <thread>

namespace llava {
namespace {

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
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) {
      throw BadRecord(BadRecordKind::kMissingPicture, "no picture " + path.string());
    }
    if (!options.picture_size) continue;
    try {
      sizes.push_back(options.picture_size(path));
    } catch (const std::exception& wrong) {
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

// What the threads of a survey share.
struct Shared {
  std::atomic<int64_t> next = 0, done = 0;
  std::mutex mutex;                           // guards what follows
  std::map<int64_t, std::string> complaints;  // about the lowest numbers
  std::exception_ptr error;                   // other than a bad record
};

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
  Shared shared;
  const auto work = [&] {
    try {
      for (int64_t number; (number = shared.next++) < size; ++shared.done) {
        try {
          survey.facts[number] = FactsOf(data, encoder, number, options);
        } catch (const BadRecord& bad) {
          const std::lock_guard lock(shared.mutex);
          ++survey.bad[static_cast<int>(bad.kind())];
          shared.complaints.emplace(number, bad.what());
          if (static_cast<int>(shared.complaints.size()) > options.most_complaints) {
            shared.complaints.erase(std::prev(shared.complaints.end()));
          }
        }
      }
    } catch (...) {
      const std::lock_guard lock(shared.mutex);
      shared.error = std::current_exception();
      shared.next = size;
    }
  };
  std::atomic<int> running = std::max(1, options.threads);
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < std::max(1, options.threads); ++i) {
      threads.emplace_back([&] {
        work();
        --running;
      });
    }
    while (options.on_progress && running > 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      options.on_progress(shared.done);
    }
  }
  if (shared.error) std::rethrow_exception(shared.error);
  for (int64_t number = 0; number < size; ++number) {
    if (survey.facts[number].tokens > 0) survey.usable.push_back(number);
  }
  for (auto& [number, complaint] : shared.complaints) {
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
