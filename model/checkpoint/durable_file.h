#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

namespace llava {

// Writes `pieces` one after the other into `path`: temporary name in the same folder, fsync,
// rename, fsync of the folder. Either the whole file is there afterwards or the old one (or none)
// is. Throws std::runtime_error naming the path and the system's reason.
void WriteDurably(const std::filesystem::path& path, std::span<const std::string_view> pieces);
void WriteDurably(const std::filesystem::path& path, std::string_view content);

// fsync of a folder: makes names created or renamed in it survive a power loss.
void SyncFolder(const std::filesystem::path& folder);

// The whole of a small file. Throws std::runtime_error naming the path, also if it is larger than
// `max_bytes`.
std::string ReadSmallFile(const std::filesystem::path& path, uint64_t max_bytes = 64u << 20);

// 32 random hex digits, for names that nobody else uses.
std::string RandomName();

}  // namespace llava
