#pragma once

// The journal of a run: every answer that was paid for, on disk before it counts. Also the cache of
// prompts: runs that share the file share the answers.

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>

#include "model/openai/chat.h"

namespace llava {

// A file of JSON lines: {"request": hash, "id", "text", "finish_reason", "prompt_tokens",
// "completion_tokens", "cost"}. Memory: about 100 bytes an answer. One thread; the file is locked
// against other processes as long as the object lives.
class ChatJournal {
 public:
  // Opens or makes the file. A torn last line (the program or the machine died while it was being
  // written) is dropped, lines with zeros in them (of a disk that was late when the power failed)
  // are passed over. Throws std::runtime_error naming the file, and the line if another one is
  // broken; also if it is another kind of file, or another process has it open.
  explicit ChatJournal(std::filesystem::path path);
  ~ChatJournal();
  ChatJournal(const ChatJournal&) = delete;
  ChatJournal& operator=(const ChatJournal&) = delete;

  struct Entry {
    ChatReply reply;
    double cost = 0;  // as it was when it was paid for
  };
  // The first answer to the request with this hash. One that the server broke off is none (clients
  // do not take them, but have): it counts for usage and cost alone.
  std::optional<Entry> Find(const std::string& hash) const;
  bool Holds(const std::string& hash) const { return places_.contains(hash); }

  // Records results that have replies, with what each cost; they are on disk when it returns.
  // Throws std::runtime_error naming the file and the reason (a full disk, for one); the file then
  // ends with the last answer that was recorded before, and the call may be repeated.
  void Append(std::span<const ChatResult> results, std::span<const double> costs);

  const std::filesystem::path& path() const { return path_; }
  size_t size() const { return places_.size(); }
  // Of all in it.
  const ChatUsage& usage() const { return usage_; }
  double cost() const { return cost_; }
  // Of those that were recorded without a cost, because nobody told the prices then.
  const ChatUsage& unpriced() const { return unpriced_; }
  // Of a torn line that was dropped.
  uint64_t dropped_bytes() const { return dropped_bytes_; }

 private:
  struct Place {
    uint64_t offset, size;
  };
  void Load();
  void Add(const nlohmann::json& entry, Place place);
  void Count(const std::string& hash, const ChatReply& reply, double cost, Place place);
  [[noreturn]] void Fail(const std::string& what, int error) const;

  std::filesystem::path path_;
  int file_ = -1;
  uint64_t end_ = 0;                               // of what is recorded
  std::unordered_map<std::string, Place> places_;  // by hash
  ChatUsage usage_, unpriced_;
  double cost_ = 0;
  uint64_t dropped_bytes_ = 0;
};

// An answer as a line of a journal or replay file tells it. Throws std::invalid_argument.
ChatReply ReplyFromJson(const nlohmann::json& line);

}  // namespace llava
