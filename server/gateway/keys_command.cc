#include "server/gateway/keys_command.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "server/gateway/file_io.h"
#include "server/runtime/settings.h"

namespace llava {
namespace {

constexpr char kProgram[] = "llava-gateway keys";
constexpr char kHead[] =
    "# API keys of llava-gateway: SHA-256 of each key, never the key itself. See docs/access.md.\n";

// 256 random bits: nobody guesses what hashes to a line of the file, so no salt is needed.
std::string MakeKey() {
  std::array<char, 32> bytes;
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    throw std::runtime_error("no random numbers to be had");
  }
  std::string text = absl::WebSafeBase64Escape(absl::string_view(bytes.data(), bytes.size()));
  return absl::StrCat("llava-", text);
}

std::string LimitsText(const KeyLimits& limits) {
  std::vector<std::string> parts;
  for (const KeyLimitField& field : kKeyLimitFields) {
    const int64_t value = limits.*field.member;
    if (value != 0) parts.push_back(absl::StrCat(field.name, ": ", value));
  }
  return absl::StrJoin(parts, ", ");
}

// Empty text if there is no file yet.
absl::StatusOr<std::string> ReadText(const std::string& path) {
  auto text = ReadFile(path);
  if (absl::IsNotFound(text.status())) return std::string();
  return text;
}

std::string FolderOf(const std::string& path) {
  return std::filesystem::absolute(path).parent_path().string();
}

// From reading to writing, so that of two commands none takes back what the other one did. On the
// folder, as the file itself is replaced. Until the end of its life.
class FolderLock {
 public:
  explicit FolderLock(const std::string& path)
      : folder_(open(FolderOf(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    // Without a folder, writing says so. Some network file systems lock no folders.
    while (folder_ >= 0 && flock(folder_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  ~FolderLock() {
    if (folder_ >= 0) close(folder_);
  }

 private:
  const int folder_;
};

// All or nothing, so that a gateway never reads half a file. Keeps the file's owner, who may be the
// gateway's user while this is root, and its mode; a new one is its owner's alone.
absl::Status WriteText(const std::string& path, const std::string& text) {
  struct stat info;
  const bool existed = stat(path.c_str(), &info) == 0;
  const mode_t mode = existed ? info.st_mode & 0777 : 0600;
  const std::string temporary = absl::StrCat(path, ".tmp-", getpid());
  const int file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  bool good = file >= 0;
  if (good && existed && fchown(file, info.st_uid, info.st_gid) != 0) {
    close(file);
    unlink(temporary.c_str());
    return absl::FailedPreconditionError(
        absl::StrCat(path, " belongs to user ", info.st_uid, " and group ", info.st_gid,
                     ", and would not any more; run this as that user or as root"));
  }
  good = good && fchmod(file, mode) == 0;
  for (size_t done = 0; good && done < text.size();) {
    const ssize_t count = write(file, text.data() + done, text.size() - done);
    good = count > 0;
    if (good) done += static_cast<size_t>(count);
  }
  good = good && fsync(file) == 0;
  if (file >= 0) good = close(file) == 0 && good;
  good = good && rename(temporary.c_str(), path.c_str()) == 0;
  if (good) {  // and done: some file systems sync no folders
    if (auto synced = SyncFolder(FolderOf(path)); !synced.ok()) {
      std::cerr << "llava-gateway: " << path
                << " is written, but may be lost with the machine: " << synced.message() << "\n";
    }
    return absl::OkStatus();
  }
  const std::string why = std::strerror(errno);
  unlink(temporary.c_str());
  return absl::UnavailableError(absl::StrCat("cannot write ", path, ": ", why));
}

absl::Status Add(const std::string& path, ApiKey key) {
  if (auto status = CheckKeyName(key.name); !status.ok()) return status;
  const FolderLock lock(path);
  auto text = ReadText(path);
  if (!text.ok()) return text.status();
  const std::string secret = MakeKey();
  key.hashes = {HashBytes(secret)};
  auto changed = AddKeyLine(text->empty() ? kHead : *text, key);
  if (!changed.ok()) return changed.status();
  if (auto status = WriteText(path, *changed); !status.ok()) return status;
  std::cerr << "key of " << key.name << ", shown this once; " << path << " keeps its hash only:\n";
  std::cout << secret << std::endl;
  return absl::OkStatus();
}

absl::Status Revoke(const std::string& path, const std::string& name) {
  const FolderLock lock(path);
  auto text = ReadText(path);
  if (!text.ok()) return text.status();
  auto changed = RemoveKeyLines(*text, name);
  if (!changed.ok()) return changed.status();
  return WriteText(path, *changed);
}

absl::Status List(const std::string& path) {
  const auto text = ReadText(path);
  if (!text.ok()) return text.status();
  const auto keys = ParseApiKeys(*text);
  if (!keys.ok()) return keys.status();
  for (const ApiKey& key : *keys) {
    const std::string limits = LimitsText(key.limits);
    std::cout << key.name << "  " << ToString(key.role) << "  weight " << key.weight << "  sha256 "
              << ToHex(key.hashes.front()).substr(0, 12) << (limits.empty() ? "" : "  ") << limits
              << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> AddKeyLine(const std::string& text, const ApiKey& key) {
  std::string limits = LimitsText(key.limits);
  if (!limits.empty()) limits = ", " + limits;
  std::vector<std::string> hashes;
  for (const Sha256Digest& hash : key.hashes) hashes.push_back(ToHex(hash));
  std::string changed = text;
  if (auto keys = ParseApiKeys(changed); keys.ok() && keys->empty()) {
    changed = absl::StrReplaceAll(changed, {{"[]", ""}});  // what RemoveKeyLines leaves
  }
  if (!changed.empty() && changed.back() != '\n') changed += '\n';
  absl::StrAppend(
      &changed, "- {name: ", key.name, ", role: ", ToString(key.role), ", weight: ", key.weight,
      limits, ", sha256: ",
      hashes.size() == 1 ? hashes[0] : absl::StrCat("[", absl::StrJoin(hashes, ", "), "]"), "}\n");
  if (auto keys = ParseApiKeys(changed); !keys.ok()) return keys.status();
  return changed;
}

absl::StatusOr<std::string> RemoveKeyLines(const std::string& text, const std::string& name) {
  const auto keys = ParseApiKeys(text);
  if (!keys.ok()) return keys.status();
  const YAML::Node root = YAML::Load(text);  // reads well: ParseApiKeys has read it
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  for (size_t i = 0; i < root.size(); ++i) {
    if ((*keys)[i].name != name) continue;
    const int first = root[i].Mark().line;
    const int last =
        i + 1 < root.size() ? root[i + 1].Mark().line : static_cast<int>(lines.size()) - 1;
    lines.erase(lines.begin() + first, lines.begin() + std::max(last, first + 1));
    std::string changed = absl::StrJoin(lines, "\n");
    if (root.size() == 1) changed += "[]\n";  // nobody, rather than an empty file
    const auto left = ParseApiKeys(changed);
    if (left.ok() && left->size() + 1 == keys->size()) return changed;
    return absl::InvalidArgumentError(
        absl::StrCat("cannot take out ", name, " alone; edit the file by hand"));
  }
  return absl::NotFoundError(absl::StrCat("there is no key of the name \"", name, "\""));
}

int RunKeysCommand(int argc, const char* const* argv) {
  CLI::App app("API keys of a gateway. A running gateway takes changes over within a second.",
               kProgram);
  app.require_subcommand(1);
  std::string path;
  ApiKey key;
  std::string role = "user";
  const auto file = [&](CLI::App* command) {
    command->add_option("--keys-file", path, "The file")
        ->type_name("FILE")
        ->envname("LLAVA_GATEWAY_KEYS_FILE")
        ->required();
  };
  CLI::App* add = app.add_subcommand("add", "Makes a key, prints it once and adds its hash");
  add->add_option("name", key.name, "Whose key it is; owner of the sessions made with it")
      ->required();
  add->add_option("--role", role, "user, admin (sees all sessions) or monitor (metrics only)")
      ->capture_default_str();
  add->add_option("--weight", key.weight, "Share when the gateway is full")->capture_default_str();
  for (const KeyLimitField& field : kKeyLimitFields) {
    add->add_option(absl::StrCat("--", field.name), key.limits.*field.member, field.help);
  }
  file(add);
  CLI::App* list = app.add_subcommand("list", "Names, roles and limits");
  file(list);
  CLI::App* revoke = app.add_subcommand("revoke", "Takes a key out; its sessions stay");
  revoke->add_option("name", key.name, "Whose key")->required();
  file(revoke);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& call) {
    return app.exit(call);
  } catch (const CLI::ParseError& error) {
    PrintError(kProgram, absl::StrCat(error.what(), " (see --help)"));
    return 2;
  }
  absl::Status status;
  if (add->parsed()) {
    const auto parsed = ParseKeyRole(role);
    status = parsed.status();
    if (status.ok()) {
      key.role = *parsed;
      status = Add(path, std::move(key));
    }
  } else {
    status = list->parsed() ? List(path) : Revoke(path, key.name);
  }
  if (status.ok()) return 0;
  PrintError(kProgram, std::string(status.message()));
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace llava
