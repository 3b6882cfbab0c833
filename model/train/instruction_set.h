#pragma once

#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/data/instructions/instruction_data.h"
#include "model/data/instructions/record_survey.h"
#include "model/data/instructions/sample_encoder.h"
#include "model/train/row_plan.h"

namespace llava {

// Data files with all that is known of them before training. Const after construction and KeepPlan,
// thread-safe.
class InstructionSet {
 public:
  struct Options {
    std::string name;  // "data", "held-out data": in messages and on the bar
    std::vector<std::filesystem::path> files;
    std::filesystem::path images;
    int64_t most_records = 0;  // the first ones; 0: all
    RowPlanOptions plan;
    int threads = 1;
    bool skip_bad = false;
    bool decode = false;  // all pictures at once: none must fail when it is too late
  };
  // Reads every record, and tells `progress` which were left out or cut. Throws std::runtime_error
  // if nothing is left or something is bad that may not be skipped.
  InstructionSet(const Options& options, const SampleEncoder& encoder, std::FILE* progress);

  // Writes into `file` what the plan is made of. If a run `resumes` that has it, plans anew as it
  // did then, whatever can be used now: else records would come again, and others never. Tells
  // `progress` if that differs. Throws std::invalid_argument if these are other records,
  // std::runtime_error if so many cannot be used any more that their pictures may be elsewhere.
  void KeepPlan(const std::filesystem::path& file, bool resumes, std::FILE* progress);

  const InstructionData& data() const { return data_; }
  const RowPlan& plan() const { return *plan_; }
  // Those of the plan can, unless the run began with more.
  bool CanBeUsed(int64_t number) const { return facts_[number].tokens > 0; }
  // What there is and what was left out or cut, in numbers, and the first complaints.
  const nlohmann::ordered_json& report() const { return report_; }

  // The report where all pictures have been decoded, too. Throws as the constructor.
  nlohmann::ordered_json Check(std::FILE* progress) const;

 private:
  RecordSurvey Survey(bool decode, std::FILE* progress) const;
  nlohmann::ordered_json Report(const RecordSurvey& survey) const;

  Options options_;
  const SampleEncoder& encoder_;
  InstructionData data_;
  std::vector<RecordFacts> facts_;
  nlohmann::ordered_json report_;
  std::unique_ptr<const RowPlan> plan_;
};

}  // namespace llava
