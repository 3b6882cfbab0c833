#include "model/openai/chat_journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "model/checkpoint/durable_file.h"

namespace llava {
namespace {

using Json = nlohmann::json;

constexpr size_t kHashSize = 64;

const Json* FindKey(const Json& line, const char* key) {
  const auto found = line.find(key);
  return found == line.end() || found->is_null() ? nullptr : &*found;
}

std::string LineOf(const ChatResult& result, double cost) {
  const ChatReply& reply = *result.reply;
  const nlohmann::ordered_json line = {{"request", result.hash},
                                       {"id", result.id},
                                       {"text", reply.text},
                                       {"finish_reason", reply.finish_reason},
                                       {"prompt_tokens", reply.usage.prompt_tokens},
                                       {"completion_tokens", reply.usage.completion_tokens},
                                       {"cost", cost}};
  return line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

// Bytes that no answer has.
bool HoldsZeros(std::string_view text) { return text.find('\0') != text.npos; }

// As a line of LineOf does, however short it was cut off.
bool BeginsLikeOurs(std::string_view text) {
  constexpr std::string_view kBegin = "{\"request\":\"";
  const size_t common = std::min(kBegin.size(), text.size());
  return text.substr(0, common) == kBegin.substr(0, common) ||
         text.find_first_not_of('\0') == text.npos;
}

}  // namespace

ChatReply ReplyFromJson(const Json& line) {
  const auto text_at = [&](const char* key) -> std::string {
    const Json* value = FindKey(line, key);
    if (!value) return "";
    if (!value->is_string()) {
      throw std::invalid_argument(std::string("\"") + key + "\" is not a text");
    }
    return value->get<std::string>();
  };
  const auto count_at = [&](const char* key) -> uint64_t {
    const Json* value = FindKey(line, key);
    if (!value) return 0;
    if (!value->is_number_unsigned()) {
      throw std::invalid_argument(std::string("\"") + key + "\" is not a number of tokens");
    }
    return value->get<uint64_t>();
  };
  if (!line.is_object()) throw std::invalid_argument("is no JSON object");
  if (!FindKey(line, "text")) throw std::invalid_argument("has no \"text\"");
  return {.text = text_at("text"),
          .finish_reason = text_at("finish_reason"),
          .usage = {.prompt_tokens = count_at("prompt_tokens"),
                    .completion_tokens = count_at("completion_tokens")}};
}

ChatJournal::ChatJournal(std::filesystem::path path) : path_(std::move(path)) {
  file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (file_ < 0) Fail("cannot be opened", errno);
  try {
    if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) Fail("cannot be locked", errno);
      throw std::runtime_error(path_.string() + ": another program is writing this journal");
    }
    Load();
  } catch (...) {
    close(file_);
    throw;
  }
}

ChatJournal::~ChatJournal() { close(file_); }

void ChatJournal::Load() {
  struct stat info = {};
  if (fstat(file_, &info) != 0) Fail("cannot be read", errno);
  if (!S_ISREG(info.st_mode)) throw std::runtime_error(path_.string() + ": is not a regular file");
  std::ifstream file(path_, std::ios::binary);
  std::string text;
  std::string rest;       // first line behind the last entry
  std::string complaint;  // about the line before: an error only if another one follows
  uint64_t number = 0;
  for (uint64_t at = 0; std::getline(file, text); at += text.size() + 1) {
    if (!complaint.empty()) throw std::runtime_error(complaint);
    if (rest.empty()) rest = text;
    if (file.eof()) break;  // without its newline: torn
    ++number;
    // A line may be whole and torn, where the disk was late with its middle: then it is the last.
    try {
      const Json line = Json::parse(text);
      Add(line, {at, text.size()});
      end_ = at + text.size() + 1;
      rest.clear();
    } catch (const std::exception& error) {
      // Zeros are what a late disk has; answers that were written together with it may follow.
      if (HoldsZeros(text)) continue;
      complaint = path_.string() + ":" + std::to_string(number) + ": " + error.what();
    }
  }
  if (file.bad()) Fail("cannot be read", errno);
  // Behind an answer a rest can only be ours. With none before it, it must begin as one does, or be
  // the zeros of a disk that was late: any other file keeps its content.
  if (end_ == 0 && !BeginsLikeOurs(rest)) {
    throw std::runtime_error(path_.string() +
                             ": is no journal; it is left as it is, name another file");
  }
  dropped_bytes_ = static_cast<uint64_t>(info.st_size) - end_;
  if (dropped_bytes_ > 0 && ftruncate(file_, static_cast<off_t>(end_)) != 0) {
    Fail("cannot be cut", errno);
  }
  // So that a file that has just been made survives a power loss.
  SyncFolder(path_.has_parent_path() ? path_.parent_path() : ".");
}

void ChatJournal::Add(const Json& entry, Place place) {
  const Json* hash = FindKey(entry, "request");
  if (!hash || !hash->is_string() || hash->get_ref<const std::string&>().size() != kHashSize) {
    throw std::invalid_argument("has no \"request\" with the hash of one");
  }
  const Json* cost = FindKey(entry, "cost");
  if (cost && !cost->is_number()) throw std::invalid_argument("\"cost\" is no number");
  Count(hash->get<std::string>(), ReplyFromJson(entry), cost ? cost->get<double>() : 0, place);
}

void ChatJournal::Count(const std::string& hash, const ChatReply& reply, double cost, Place place) {
  usage_ += reply.usage;
  if (cost == 0) unpriced_ += reply.usage;
  cost_ += cost;
  if (!reply.broken_off()) places_.emplace(hash, place);
}

std::optional<ChatJournal::Entry> ChatJournal::Find(const std::string& hash) const {
  const auto found = places_.find(hash);
  if (found == places_.end()) return std::nullopt;
  std::string line(found->second.size, '\0');
  const ssize_t got =
      pread(file_, line.data(), line.size(), static_cast<off_t>(found->second.offset));
  if (got < 0) Fail("cannot be read", errno);
  if (static_cast<size_t>(got) != line.size()) {
    throw std::runtime_error(path_.string() + ": has become shorter");
  }
  const Json entry = Json::parse(line);
  return Entry{.reply = ReplyFromJson(entry), .cost = entry.value("cost", 0.0)};
}

void ChatJournal::Append(std::span<const ChatResult> results, std::span<const double> costs) {
  std::string text;
  std::vector<Place> places;
  for (size_t i = 0; i < results.size(); ++i) {
    const std::string line = LineOf(results[i], costs[i]);
    places.push_back({end_ + text.size(), line.size() - 1});
    text += line;
  }
  const auto undo = [&](const char* what, int error) {
    if (ftruncate(file_, static_cast<off_t>(end_)) != 0) {
      Fail("ends with a torn line, which the next run drops", errno);
    }
    Fail(what, error);
  };
  size_t written = 0;
  while (written < text.size()) {
    const ssize_t now = pwrite(file_, text.data() + written, text.size() - written,
                               static_cast<off_t>(end_ + written));
    if (now < 0 && errno == EINTR) continue;
    if (now < 0) undo("cannot be written", errno);
    written += static_cast<size_t>(now);
  }
  if (fdatasync(file_) != 0) undo("cannot be synchronised with the disk", errno);
  end_ += text.size();
  for (size_t i = 0; i < results.size(); ++i) {
    Count(results[i].hash, *results[i].reply, costs[i], places[i]);
  }
}

void ChatJournal::Fail(const std::string& what, int error) const {
  throw std::runtime_error(path_.string() + ": " + what + ": " + std::strerror(error));
}

}  // namespace llava
