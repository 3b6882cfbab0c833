#include "model/openai/replay.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <utility>

#include "model/openai/chat_journal.h"

namespace llava {

ReplayBackend::ReplayBackend(std::filesystem::path path) : path_(std::move(path)) {
  std::ifstream file(path_, std::ios::binary);
  if (!file) {
    throw std::invalid_argument(path_.string() +
                                ": the replay file cannot be read: " + std::strerror(errno));
  }
  std::string text;
  for (int number = 1; std::getline(file, text); ++number) {
    if (text.find_first_not_of(" \t\r") == text.npos) continue;
    if (text.find('\0') != text.npos) continue;  // of a late disk, as ChatJournal
    try {
      const auto line = nlohmann::json::parse(text);
      const ChatReply reply = ReplyFromJson(line);
      if (reply.broken_off()) continue;  // as ChatJournal
      const bool has_hash = line.contains("request");
      const char* key = has_hash ? "request" : "id";
      if (!line.contains(key) || !line[key].is_string()) {
        throw std::invalid_argument("has no \"request\" or \"id\" of a request");
      }
      auto& known = has_hash ? by_hash_ : by_id_;
      const auto [found, fresh] = known.emplace(line[key].get<std::string>(), replies_.size());
      if (fresh) {
        replies_.push_back(reply);
      } else if (replies_[found->second].text != reply.text) {
        throw std::invalid_argument("another answer for " + found->first);
      }
    } catch (const std::exception& error) {
      throw std::invalid_argument(path_.string() + ":" + std::to_string(number) + ": " +
                                  error.what());
    }
  }
}

void ReplayBackend::Submit(const ChatRequest& request) {
  ChatResult result{.id = request.id, .hash = HashOf(request), .attempts = 1};
  const auto by_hash = by_hash_.find(result.hash);
  const auto by_id = by_id_.find(request.id);
  if (by_hash != by_hash_.end()) {
    result.reply = replies_[by_hash->second];
  } else if (by_id != by_id_.end()) {
    result.reply = replies_[by_id->second];
  } else {
    result.end = ChatEnd::kFailed;
    result.error = path_.string() + " holds no answer for " + request.id + " (request " +
                   result.hash.substr(0, 12) + "...)";
  }
  results_.push_back(std::move(result));
}

std::vector<ChatResult> ReplayBackend::Wait(std::chrono::milliseconds most) {
  return std::exchange(results_, {});
}

}  // namespace llava
