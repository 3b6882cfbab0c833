#pragma once

// A look at every record before training: which can be used, and how large they are.

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/data/instructions/instruction_data.h"
#include "model/data/instructions/sample_encoder.h"

namespace llava {

// What the order of training depends on.
struct RecordFacts {
  int32_t tokens = 0, trained_tokens = 0;  // 0: cannot be used
  int32_t words = 0;                       // of all messages, by white space
  int32_t image_tokens = 0;                // those among `tokens` that stand for pictures
  int32_t turns = 0, dropped_turns = 0;
  uint64_t picture = 0;  // equal for records of the same pictures; 0 for none
};

struct RecordSurvey {
  std::vector<RecordFacts> facts;                 // of every record, by number
  std::vector<int64_t> usable;                    // numbers of the records that are good
  std::array<int64_t, kNumBadRecordKinds> bad{};  // by kind
  std::vector<std::string> complaints;            // about the first 20 bad ones
  int64_t num_bad() const;
};

struct SurveyOptions {
  // Looks into a picture instead of whether the file is there alone; throws std::invalid_argument
  // for a bad one, and what else it throws ends the survey. Thread-safe. May be empty if the
  // encoder needs no sizes.
  std::function<Resolution(const std::filesystem::path&)> picture_size;
  int threads = 1;
  int64_t most_records = 0;                       // the first ones; 0: all
  std::function<void(int64_t done)> on_progress;  // by one thread at a time
};

// Reads every record and encodes it for epoch 0. Throws StopRequest::Came, and as
// InstructionData::HasPicture: without the folder of the pictures no record is to blame.
RecordSurvey SurveyRecords(const InstructionData& data, const SampleEncoder& encoder,
                           const SurveyOptions& options);

// Throws std::runtime_error listing the first bad records unless all are good.
void RequireAllUsable(const RecordSurvey& survey);

}  // namespace llava
