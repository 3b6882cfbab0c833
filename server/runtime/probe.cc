#include "server/runtime/probe.h"

#include <netdb.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

namespace llava {
namespace {

constexpr size_t kMaxAnswerBytes = 4096;

class Connection {
 public:
  Connection(const std::string& host, const std::string& port, std::chrono::seconds patience) {
    const timeval timeout{patience.count(), 0};  // of connecting, and of each read and write
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return;
    for (const addrinfo* each = found; each != nullptr && !connected_; each = each->ai_next) {
      if (socket_ >= 0) close(socket_);
      socket_ = socket(each->ai_family, each->ai_socktype | SOCK_CLOEXEC, each->ai_protocol);
      if (socket_ < 0) continue;
      setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
      setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
      connected_ = connect(socket_, each->ai_addr, each->ai_addrlen) == 0;
    }
    freeaddrinfo(found);
  }
  ~Connection() {
    if (socket_ >= 0) close(socket_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  bool connected() const { return connected_; }
  int socket_number() const { return socket_; }

 private:
  int socket_ = -1;
  bool connected_ = false;
};

// What comes back to `question`, to the end of the connection or kMaxAnswerBytes.
std::string Ask(const std::string& question, const std::function<int(const char*, int)>& write,
                const std::function<int(char*, int)>& read) {
  if (write(question.data(), static_cast<int>(question.size())) <= 0) return "";
  std::string answer;
  char piece[1024];
  int got = 0;
  while (answer.size() < kMaxAnswerBytes && (got = read(piece, sizeof piece)) > 0) {
    answer.append(piece, static_cast<size_t>(got));
  }
  return answer;
}

std::string AskPlain(const Connection& to, const std::string& question) {
  const int number = to.socket_number();
  return Ask(
      question,
      [=](const char* data, int size) {
        return static_cast<int>(send(number, data, size, MSG_NOSIGNAL));
      },
      [=](char* data, int size) { return static_cast<int>(recv(number, data, size, 0)); });
}

std::string AskTls(const Connection& to, const std::string& question) {
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()),
                                                                  &SSL_CTX_free);
  if (!context) return "";
  const std::unique_ptr<SSL, decltype(&SSL_free)> tls(SSL_new(context.get()), &SSL_free);
  if (!tls || SSL_set_fd(tls.get(), to.socket_number()) != 1 || SSL_connect(tls.get()) != 1) {
    return "";
  }
  return Ask(
      question, [&](const char* data, int size) { return SSL_write(tls.get(), data, size); },
      [&](char* data, int size) { return SSL_read(tls.get(), data, size); });
}

}  // namespace

std::string WhyNotReady(const std::string& address, std::chrono::seconds patience) {
  const size_t colon = address.rfind(':');
  std::string host = colon == std::string::npos ? "" : address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  if (host.empty()) host = "127.0.0.1";
  const std::string port = colon == std::string::npos ? address : address.substr(colon + 1);
  const std::string question =
      "GET /readyz HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n";

  std::string answer;
  for (const auto& ask : {AskPlain, AskTls}) {
    const Connection connection(host, port, patience);
    if (!connection.connected()) return "nothing listens at " + host + ":" + port;
    answer = ask(connection, question);
    if (answer.starts_with("HTTP/1.1 ")) break;
  }
  if (answer.starts_with("HTTP/1.1 200 ")) return "";
  const size_t body = answer.find("\r\n\r\n");
  if (body == std::string::npos) return "no answer in HTTP from " + host + ":" + port;
  std::string reason = answer.substr(body + 4);
  while (!reason.empty() && reason.back() == '\n') reason.pop_back();
  return reason.empty() ? "an answer without a word" : reason;
}

}  // namespace llava
