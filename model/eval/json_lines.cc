#include "model/eval/json_lines.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <utility>

#include "model/checkpoint/durable_file.h"
#include "model/text/json_text.h"

namespace llava {
namespace {

using Json = nlohmann::json;

[[noreturn]] void FailSystem(const std::filesystem::path& path, const char* what, int error) {
  throw std::runtime_error(path.string() + ": cannot " + what + ": " + std::strerror(error));
}

bool IsBlank(const std::string& line) { return line.find_first_not_of(" \t\r") == line.npos; }

// Bytes up to the end of the last whole line.
off_t WholeLines(int fd, off_t size) {
  char buffer[4096];
  for (off_t end = size; end > 0;) {
    const off_t begin = std::max<off_t>(0, end - static_cast<off_t>(sizeof(buffer)));
    const ssize_t got = pread(fd, buffer, static_cast<size_t>(end - begin), begin);
    if (got != end - begin) return -1;
    for (ssize_t i = got; i > 0; --i) {
      if (buffer[i - 1] == '\n') return begin + i;
    }
    end = begin;
  }
  return 0;
}

// Whether the first line is a record with `key`. If it is not `whole`: whether it begins as one
// that JsonLinesFile wrote, or is the zeros of a disk that was late.
bool BeginsWithKey(const std::filesystem::path& path, bool whole, const std::string& key) {
  std::ifstream file(path, std::ios::binary);
  std::string line;
  std::getline(file, line);
  if (whole) {
    const Json record = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    return record.is_object() && record.contains(key);
  }
  const std::string begin = "{\"" + key + "\":";
  const size_t common = std::min(begin.size(), line.size());
  return line.compare(0, common, begin, 0, common) == 0 ||
         line.find_first_not_of('\0') == line.npos;
}

}  // namespace

std::vector<JsonObject> ReadJsonLines(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) FailSystem(path, "read", errno);
  std::vector<JsonObject> records;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (number == 1 && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);  // byte order mark
    if (IsBlank(line)) continue;
    const std::string where = path.string() + ":" + std::to_string(number);
    Json value;
    try {
      value = ParseJson<Json>(line);
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(where + ": no JSON: " + error.what());
    }
    if (!value.is_object()) {
      throw std::runtime_error(where + ": is a JSON " + value.type_name() + ", no object");
    }
    records.emplace_back(std::move(value), where);
  }
  if (file.bad()) FailSystem(path, "read", errno);
  return records;
}

Json ReadWholeJson(const std::filesystem::path& path) {
  constexpr uint64_t kLargestFile = uint64_t{1} << 30;
  try {
    return ParseJson<Json>(ReadSmallFile(path, kLargestFile));
  } catch (const std::invalid_argument&) {
    return nullptr;
  }
}

std::string IdOf(const JsonObject& record, const std::string& key) {
  const Json& value = record.At(key);
  if (value.is_number_integer()) return value.dump();
  if (!value.is_string()) record.Fail(key, "is " + value.dump() + ", a text or number is expected");
  return value.get<std::string>();
}

std::map<std::string, JsonObject> ById(std::vector<JsonObject> records, const std::string& key,
                                       int64_t* twice) {
  std::map<std::string, JsonObject> by_id;
  for (JsonObject& record : records) {
    const std::string id = IdOf(record, key);
    if (by_id.contains(id)) {
      if (!twice) record.Fail(key, "is " + id + " for the second time");
      ++*twice;
    }
    by_id.insert_or_assign(id, std::move(record));
  }
  return by_id;
}

JsonLinesFile::JsonLinesFile(const std::filesystem::path& path, const std::string& first_key)
    : path_(path), fd_(open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
  if (fd_ < 0) FailSystem(path_, "open for writing", errno);
  const char* failed = nullptr;
  struct stat status {};
  if (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    failed = "write while another program does";
  } else if (fstat(fd_, &status) != 0) {
    failed = "look at";
  } else {
    const off_t whole = WholeLines(fd_, status.st_size);
    if (whole < 0) {
      failed = "read";
    } else if (status.st_size > 0 && !BeginsWithKey(path_, whole > 0, first_key)) {
      close(fd_);
      throw std::runtime_error(path_.string() + ": has no records with \"" + first_key +
                               "\"; it is left as it is, name another file");
    } else if (whole < status.st_size && ftruncate(fd_, whole) != 0) {
      failed = "cut off the torn last line of";
    }
  }
  if (!failed) return;
  const int error = errno;
  close(fd_);
  FailSystem(path_, failed, error);
}

JsonLinesFile::~JsonLinesFile() { close(fd_); }

void JsonLinesFile::Append(const nlohmann::ordered_json& record) {
  const std::string line =
      record.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  struct stat before {};
  if (fstat(fd_, &before) != 0) FailSystem(path_, "look at", errno);
  int error = 0;
  for (size_t done = 0; done < line.size() && error == 0;) {
    const ssize_t written = write(fd_, line.data() + done, line.size() - done);
    if (written >= 0) {
      done += static_cast<size_t>(written);
    } else if (errno != EINTR) {
      error = errno;
    }
  }
  if (error == 0 && fdatasync(fd_) != 0) error = errno;
  if (error == 0) return;
  // Best effort: opening the file again cuts a torn line off, too.
  [[maybe_unused]] const int cut = ftruncate(fd_, before.st_size);
  FailSystem(path_, "write", error);
}

void JsonLinesFile::Order(const std::vector<std::string>& names,
                          const std::function<std::string(const JsonObject&)>& name_of) {
  std::map<std::string, size_t> rank;
  for (const std::string& name : names) rank.emplace(name, rank.size());
  std::vector<std::pair<size_t, std::string>> lines;
  std::ifstream file(path_, std::ios::binary);
  for (std::string line; std::getline(file, line);) {
    if (IsBlank(line)) continue;
    const JsonObject record(ParseJson<Json>(line), path_.string());
    const auto found = rank.find(name_of(record));
    lines.emplace_back(found == rank.end() ? names.size() : found->second, std::move(line));
  }
  if (!file.eof()) FailSystem(path_, "read", errno);
  const auto before = [](const auto& a, const auto& b) { return a.first < b.first; };
  if (std::is_sorted(lines.begin(), lines.end(), before)) return;
  std::stable_sort(lines.begin(), lines.end(), before);
  std::string content;
  for (const auto& [place, line] : lines) (content += line) += '\n';
  WriteDurably(path_, content);
}

}  // namespace llava
