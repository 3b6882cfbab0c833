#pragma once

// Copies of a gateway's sessions and pictures.

#include <cstdint>
#include <filesystem>

#include "absl/status/statusor.h"

namespace llava {

struct BackupContents {
  int64_t sessions = 0, turns = 0, images = 0;
};

// Copies the store in `data_dir` to the new folder `target`, as it was at one moment, while a
// gateway serves it. Answers in the making are interrupted in the copy. `target` appears when all
// is on disk. FAILED_PRECONDITION: no store there, or `target` exists.
absl::StatusOr<BackupContents> BackUpStore(const std::filesystem::path& data_dir,
                                           const std::filesystem::path& target);

// Makes a store in `data_dir`, which must not have one, from a copy. DATA_LOSS: the copy is damaged
// (each picture is checked by its hash, the tables by SQLite).
absl::StatusOr<BackupContents> RestoreStore(const std::filesystem::path& source,
                                            const std::filesystem::path& data_dir);

}  // namespace llava
