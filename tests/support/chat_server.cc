#include "tests/support/chat_server.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <stdexcept>
#include <utility>

namespace llava {

ChatServer::ChatServer(Script script) : script_(std::move(script)) {
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (listener_ < 0 || bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(listener_, 64) != 0 ||
      getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw std::runtime_error("the test's server cannot listen");
  }
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { Accept(); });
}

ChatServer::~ChatServer() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    for (const int connection : connections_) shutdown(connection, SHUT_RDWR);
    changed_.notify_all();
  }
  shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  for (std::thread& thread : threads_) thread.join();
  for (const int connection : connections_) close(connection);
  close(listener_);
}

std::vector<ChatServer::Asked> ChatServer::asked() const {
  const std::lock_guard lock(mutex_);
  return asked_;
}

size_t ChatServer::num_asked() const {
  const std::lock_guard lock(mutex_);
  return asked_.size();
}

int ChatServer::most_at_once() const {
  const std::lock_guard lock(mutex_);
  return most_at_once_;
}

ChatServer::Answer ChatServer::Say(const std::string& text, const std::string& finish_reason,
                                   int prompt_tokens, int completion_tokens) {
  const nlohmann::json body = {{"id", "chatcmpl-1"},
                               {"object", "chat.completion"},
                               {"choices",
                                {{{"index", 0},
                                  {"message", {{"role", "assistant"}, {"content", text}}},
                                  {"finish_reason", finish_reason}}}},
                               {"usage",
                                {{"prompt_tokens", prompt_tokens},
                                 {"completion_tokens", completion_tokens},
                                 {"total_tokens", prompt_tokens + completion_tokens}}}};
  return {.body = body.dump()};
}

ChatServer::Answer ChatServer::Refuse(int status, const std::string& message,
                                      std::vector<std::string> headers) {
  const nlohmann::json body = {{"error", {{"message", message}, {"type", "some_error"}}}};
  return {.status = status, .headers = std::move(headers), .body = body.dump()};
}

void ChatServer::Accept() {
  while (true) {
    const int connection = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    const std::lock_guard lock(mutex_);
    if (closing_) {
      if (connection >= 0) close(connection);
      return;
    }
    if (connection < 0) continue;
    connections_.push_back(connection);
    threads_.emplace_back([this, connection] { Serve(connection); });
  }
}

void ChatServer::Serve(int connection) {
  std::string buffer;
  for (Asked asked; Read(connection, buffer, asked); asked = {}) {
    asked.time = std::chrono::steady_clock::now();
    {
      const std::lock_guard lock(mutex_);
      asked.number = static_cast<int>(asked_.size());
      asked_.push_back(asked);
      most_at_once_ = std::max(most_at_once_, ++at_once_);
    }
    const Answer answer = script_(asked);
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, answer.delay, [this] { return closing_; });
      --at_once_;
    }
    if (!Write(connection, answer)) break;
  }
  shutdown(connection, SHUT_RDWR);
}

bool ChatServer::Read(int connection, std::string& buffer, Asked& asked) {
  const auto more = [&] {
    char piece[65536];
    const ssize_t got = recv(connection, piece, sizeof(piece), 0);
    if (got > 0) buffer.append(piece, static_cast<size_t>(got));
    return got > 0;
  };
  size_t end;
  while ((end = buffer.find("\r\n\r\n")) == buffer.npos) {
    if (!more()) return false;
  }
  const size_t first_line = buffer.find("\r\n");
  const size_t path = buffer.find(' ') + 1;
  asked.path = buffer.substr(path, buffer.find(' ', path) - path);
  for (size_t at = first_line + 2; at < end;) {
    const size_t stop = buffer.find("\r\n", at);
    const size_t colon = buffer.find(':', at);
    std::string name = buffer.substr(at, colon - at);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const size_t value = std::min(buffer.find_first_not_of(' ', colon + 1), stop);
    asked.headers[name] = buffer.substr(value, stop - value);
    at = stop + 2;
  }
  const size_t size = std::stoul(asked.headers.at("content-length"));
  while (buffer.size() < end + 4 + size) {
    if (!more()) return false;
  }
  asked.body = nlohmann::json::parse(buffer.substr(end + 4, size));
  buffer.erase(0, end + 4 + size);
  return true;
}

bool ChatServer::Write(int connection, const Answer& answer) {
  std::string text = "HTTP/1.1 " + std::to_string(answer.status) + " Something\r\n";
  for (const std::string& header : answer.headers) text += header + "\r\n";
  text +=
      "Content-Type: application/json\r\nContent-Length: " + std::to_string(answer.body.size()) +
      "\r\n\r\n" + answer.body.substr(0, answer.cut_after);
  for (size_t sent = 0; sent < text.size();) {
    const ssize_t now = send(connection, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (now <= 0) return false;
    sent += static_cast<size_t>(now);
  }
  return answer.cut_after >= answer.body.size();
}

}  // namespace llava
