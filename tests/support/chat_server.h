#pragma once

// A server of OpenAI's chat completions for tests: what it answers is a script.

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

namespace llava {

// Listens on a free port of 127.0.0.1 while it lives; one thread a connection. Thread-safe.
class ChatServer {
 public:
  struct Asked {
    int number = 0;  // of the request, from 0
    std::string path;
    std::map<std::string, std::string> headers;  // names in lower case
    nlohmann::json body;
    std::chrono::steady_clock::time_point time;

    std::string last_text() const { return body.at("messages").back().at("content"); }
  };
  struct Answer {
    int status = 200;
    std::vector<std::string> headers = {};  // "Retry-After: 1"
    std::string body = "";
    std::chrono::milliseconds delay{0};
    size_t cut_after = std::string::npos;  // bytes of the body, then the connection breaks
  };
  using Script = std::function<Answer(const Asked&)>;

  explicit ChatServer(Script script);
  ~ChatServer();
  ChatServer(const ChatServer&) = delete;
  ChatServer& operator=(const ChatServer&) = delete;

  std::string base_url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/v1"; }
  std::vector<Asked> asked() const;
  size_t num_asked() const;
  int most_at_once() const;

  // A completion with this text.
  static Answer Say(const std::string& text, const std::string& finish_reason = "stop",
                    int prompt_tokens = 100, int completion_tokens = 10);
  static Answer Refuse(int status, const std::string& message = "no",
                       std::vector<std::string> headers = {});

 private:
  void Accept();
  void Serve(int connection);
  bool Read(int connection, std::string& buffer, Asked& asked);
  bool Write(int connection, const Answer& answer);

  Script script_;
  int listener_ = -1;
  int port_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool closing_ = false;  // guarded by mutex_, as what follows
  std::vector<int> connections_;
  std::vector<std::thread> threads_;
  std::vector<Asked> asked_;
  int at_once_ = 0, most_at_once_ = 0;

  std::thread acceptor_;
};

}  // namespace llava
