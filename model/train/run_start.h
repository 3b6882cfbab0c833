#pragma once

// Which checkpoints a run began with. What does not learn is in no state: when the run goes on, it
// has to come from the same ones.

#include <cstdio>
#include <filesystem>
#include <optional>

#include "model/digest/sha256.h"

namespace llava {

struct RunStart {
  struct Part {
    std::filesystem::path folder;  // what was opened; of the tower empty: it came with the model
    Sha256Digest digest{};         // LanguageCheckpoint::digest, TowerCheckpoint::digest
    bool exact = true;             // else other files of the folder change the digest, too
    std::filesystem::path newer;   // a version passed over for this one, not kept; empty: none
  };
  Part model, tower;
};

// Which folder is opened for the setting `given`: where that means a newest version, the one that
// the run `began` with, if it is still there. Throws as ResolveCheckpoint.
RunStart::Part PartOf(const std::filesystem::path& given, const RunStart::Part* began);

// Of an earlier call in this run's folder; nothing if the run has no state yet, or is of a program
// that kept none. Throws std::runtime_error naming the file if it cannot be read.
std::optional<RunStart> ReadRunStart(const std::filesystem::path& run_folder);

// Writes `now` into the run's folder, or compares it with what is there if the run `resumes`.
// Throws std::invalid_argument if it began with another model or tower. `progress`: is told which
// version was passed over, and what cannot be compared; may be null.
void KeepRunStart(const std::filesystem::path& run_folder, const RunStart& now, bool resumes,
                  std::FILE* progress);

}  // namespace llava
