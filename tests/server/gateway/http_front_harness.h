#pragma once

// The OpenAI API of a gateway with fake services behind it, and a client that writes bytes.

#include <boost/asio.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/gateway/http_front.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {

class HttpFrontTest : public GatewayTest {
 protected:
  using Json = nlohmann::json;
  using tcp = boost::asio::ip::tcp;

  ~HttpFrontTest() override { StopHttp(); }

  void StartHttp(bool hosts_checked = false) {
    StartGateway();
    front_ = gateway_->MakeHttpFront({{"/livez",
                                       [](const HttpRequest&) {
                                         return HttpResponse{200, "text/x", "alive"};
                                       }},
                                      {"/metrics",
                                       [](const HttpRequest&) {
                                         return HttpResponse{200, "text/x", "llava_up 1"};
                                       }}},
                                     hosts_checked);
    HttpServerOptions options;
    options.limits = limits_;
    auto server = HttpServer::Start(options, *front_);
    ASSERT_TRUE(server.ok()) << server.status();
    http_ = *std::move(server);
  }
  void StopHttp() {
    if (gateway_) gateway_->Stop();
    http_.reset();
    front_.reset();
  }
  tcp::socket Send(const std::string& bytes) {
    tcp::socket socket(context_);
    socket.connect(
        {boost::asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(http_->port())});
    boost::asio::write(socket, boost::asio::buffer(bytes));
    return socket;
  }
  static std::string Rest(tcp::socket& socket) {
    std::string text;
    boost::system::error_code error;
    boost::asio::read(socket, boost::asio::dynamic_buffer(text), error);
    return text;
  }
  std::string Request(const Json& body, const std::string& path = "/v1/chat/completions",
                      const std::string& more_headers = "") const {
    const std::string text = body.is_null() ? "" : body.dump();
    return absl::StrCat("POST ", path, " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n",
                        key_.empty() ? "" : "Authorization: Bearer " + key_ + "\r\n", more_headers,
                        "Content-Type: application/json\r\nContent-Length: ", text.size(),
                        "\r\n\r\n", text);
  }
  std::string Post(const Json& body) {
    auto socket = Send(Request(body));
    return Rest(socket);
  }
  std::string Get(const std::string& path, const std::string& host = "localhost") {
    auto socket =
        Send(absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: ", host, "\r\nConnection: close\r\n",
                          key_.empty() ? "" : "Authorization: Bearer " + key_ + "\r\n", "\r\n"));
    return Rest(socket);
  }
  static int StatusOf(const std::string& answer) { return std::stoi(answer.substr(9, 3)); }
  static Json BodyOf(const std::string& answer) {
    return Json::parse(answer.substr(answer.find("\r\n\r\n") + 4));
  }
  // Objects of a stream, in order, without chunk lengths; "[DONE]" is null.
  static std::vector<Json> EventsOf(const std::string& answer) {
    std::vector<Json> events;
    for (const absl::string_view line : absl::StrSplit(answer, '\n')) {
      if (!absl::StartsWith(line, "data: ")) continue;
      const std::string data(line.substr(6));
      events.push_back(data == "[DONE]" ? Json() : Json::parse(data));
    }
    return events;
  }
  // Lines of a stream that are not empty. Those of the head and between chunks end with CR.
  static std::vector<std::string> EventLinesOf(const std::string& answer) {
    std::vector<std::string> lines;
    for (const absl::string_view line : absl::StrSplit(answer, '\n')) {
      if (!line.empty() && !absl::EndsWith(line, "\r")) lines.emplace_back(line);
    }
    return lines;
  }
  static Json Ask(const std::string& text) {
    return {{"model", "emoji"}, {"messages", {{{"role", "user"}, {"content", text}}}}};
  }
  static std::string DataUri(int seed) {
    return "data:image/bmp;base64," + absl::Base64Escape(FakePicture(seed));
  }

  boost::asio::io_context context_;
  HttpLimits limits_;
  std::unique_ptr<HttpFront> front_;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace llava
