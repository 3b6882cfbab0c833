#pragma once

// What a RowPlan knows of records, on disk: so that a run goes on in the order that it began with.

#include <filesystem>
#include <vector>

#include "model/data/instructions/record_survey.h"

namespace llava {

// Throws std::runtime_error naming the file.
void SaveFacts(const std::filesystem::path& file, const std::vector<RecordFacts>& facts);

// As far as a RowPlan reads them. Throws std::runtime_error naming the file.
std::vector<RecordFacts> ReadFacts(const std::filesystem::path& file);

}  // namespace llava
