#pragma once

// A server on this machine and sockets that talk to it byte by byte.

#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio.hpp>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <semaphore>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "server/runtime/http_server.h"

namespace llava {

using tcp = boost::asio::ip::tcp;

// /echo answers with the header X-Mark, if there is one, and the body; /stream is left to the test.
class EchoHandler : public HttpHandler {
 public:
  std::optional<HttpResponse> OnHead(const HttpRequest& head, uint64_t& body_limit) override {
    if (head.path == "/forbidden") return HttpResponse{403, "text/x", "no\n"};
    if (head.path == "/echo") body_limit = 1000;
    if (head.path == "/large") body_limit = 1u << 20;
    return std::nullopt;
  }
  void OnRequest(HttpRequest request, std::shared_ptr<HttpAnswer> answer) override {
    if (request.path == "/echo") {
      return answer->Send({200, "text/x", std::string(request.Header("x-mark")) + request.body});
    }
    if (request.path == "/large") {
      return answer->Send({200, "text/x", absl::StrCat(request.body.size())});
    }
    if (request.path == "/page") {
      ++pages;
      return answer->Send({200, "text/x", std::string(1u << 20, 'p')});
    }
    if (request.path == "/forgotten") return;
    if (request.path == "/block" || request.path == "/block_and_keep") {  // a thread of the server
      blocked.release();
      unblock.acquire();
      if (request.path == "/block") return answer->Send({200, "text/x", ""});
    }
    answer->SetOnGone([this] { ++gone; });
    std::lock_guard lock(mutex_);
    stream_ = std::move(answer);
  }
  std::shared_ptr<HttpAnswer> stream() {
    while (true) {
      {
        std::lock_guard lock(mutex_);
        if (stream_) return std::move(stream_);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  std::atomic<int> gone = 0, pages = 0;
  std::binary_semaphore blocked{0}, unblock{0};

 private:
  std::mutex mutex_;
  std::shared_ptr<HttpAnswer> stream_;
};

class HttpConnectionTest : public testing::Test {
 protected:
  void StartServer() {
    auto server = HttpServer::Start(options_, handler_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  // `receive_buffer`: bytes that the system keeps for a client that does not read; 0: its own
  // choice.
  tcp::socket Connect(int receive_buffer = 0) {
    tcp::socket socket(context_);
    socket.open(tcp::v4());
    if (receive_buffer) {
      socket.set_option(boost::asio::socket_base::receive_buffer_size(receive_buffer));
    }
    socket.connect(
        {boost::asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(server_->port())});
    return socket;
  }
  static void Send(tcp::socket& socket, const std::string& text) {
    boost::system::error_code ignored;
    boost::asio::write(socket, boost::asio::buffer(text), ignored);
  }
  // All that comes until the server closes.
  static std::string Rest(tcp::socket& socket) {
    std::string text;
    boost::system::error_code error;
    boost::asio::read(socket, boost::asio::dynamic_buffer(text), error);
    return text;
  }
  static std::string Until(tcp::socket& socket, const std::string& mark) {
    std::string text;
    boost::system::error_code error;
    boost::asio::read_until(socket, boost::asio::dynamic_buffer(text), mark, error);
    return text;
  }
  // All that comes back to a client whose bytes are there before the server looks at it, so that no
  // limit runs out before they are.
  std::string AnswerTo(const std::string& bytes) {
    auto blocking = Connect();
    Send(blocking, Post("/block", ""));
    handler_.blocked.acquire();
    auto socket = Connect();
    Send(socket, bytes);
    handler_.unblock.release();
    return Rest(socket);
  }
  static std::string Post(const std::string& path, const std::string& body,
                          const std::string& more = "Connection: close\r\n") {
    return absl::StrCat("POST ", path, " HTTP/1.1\r\nHost: x\r\nContent-Length: ", body.size(),
                        "\r\n", more, "\r\n", body);
  }

  EchoHandler handler_;
  HttpServerOptions options_;
  boost::asio::io_context context_;
  std::unique_ptr<HttpServer> server_;
};

}  // namespace llava
