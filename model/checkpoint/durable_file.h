#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace llava {

// A file that is either whole or not there, written piece by piece under another name of its
// folder. The destructor removes what was not committed. All throw std::runtime_error naming the
// path and the system's reason. One thread.
class StagedFile {
 public:
  // Written as <path>.part, which may be there from a writer that was killed. One writer at a time.
  explicit StagedFile(const std::filesystem::path& path);
  // Written as `part`, which must not be there.
  StagedFile(std::filesystem::path path, std::filesystem::path part);
  ~StagedFile();
  StagedFile(const StagedFile&) = delete;
  StagedFile& operator=(const StagedFile&) = delete;

  void Write(std::string_view piece);

  enum class Sync {
    kNow,    // survives a power cut: fsync, rename, fsync of the folder
    kLater,  // the caller syncs many at once; until then a power cut may leave an empty file
  };
  void Commit(Sync sync = Sync::kNow);

 private:
  StagedFile(std::filesystem::path path, std::filesystem::path part, int flags);
  void Flush(std::string_view bytes);

  std::filesystem::path path_, part_;
  int fd_;
  std::string buffered_;
  bool committed_ = false;
};

// Writes `pieces` one after the other into `path` as a StagedFile of a random name: either the
// whole file is there afterwards or the old one (or none) is, whoever else writes it.
void WriteDurably(const std::filesystem::path& path, std::span<const std::string_view> pieces);
void WriteDurably(const std::filesystem::path& path, std::string_view content);

// fsync of a folder: makes names created or renamed in it survive a power loss.
void SyncFolder(const std::filesystem::path& folder);

// Renames a folder that has files in it. False, with nothing changed, if there is a `to` already.
// Throws std::runtime_error naming it for anything else. The parent is not synced.
bool RenameNewFolder(const std::filesystem::path& from, const std::filesystem::path& to);

// The whole of a small file. Throws std::runtime_error naming the path, also if it is larger than
// `max_bytes`.
std::string ReadSmallFile(const std::filesystem::path& path, uint64_t max_bytes = 64u << 20);

// 32 random hex digits, for names that nobody else uses.
std::string RandomName();

}  // namespace llava
