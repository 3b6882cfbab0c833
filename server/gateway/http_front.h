#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "server/gateway/chat_service.h"
#include "server/runtime/http_server.h"

namespace llava {

// The gateway over HTTP: the OpenAI chat API in its first form, a chat page, and the pages of every
// process (/metrics, probes). Questions go the way of ChatService.Chat.
class HttpFront final : public HttpHandler {
 public:
  // All must outlive the server. `hosts_checked`: only requests for this machine by one of its
  // loopback names are taken, so that no web page of somebody else's can ask from a browser here.
  HttpFront(const TurnParts& parts, ChatServiceImpl& chat,
            std::map<std::string, HttpServer::Page> pages, bool hosts_checked);

  std::optional<HttpResponse> OnHead(const HttpRequest& head, uint64_t& body_limit) override;
  void OnRequest(HttpRequest request, std::shared_ptr<HttpAnswer> answer) override;
  HttpResponse ErrorPage(int status, const std::string& message) const override;

 private:
  // Why a request that asks for a key is refused, if it is; counted and logged.
  std::optional<HttpResponse> Refusal(const HttpRequest& head) const;
  void Complete(const HttpRequest& request, std::shared_ptr<HttpAnswer> answer);
  // Goes on with the stream that the header Last-Event-ID names.
  void Resume(const HttpRequest& request, std::shared_ptr<HttpAnswer> answer);
  void ListModels(const HttpRequest& request, std::shared_ptr<HttpAnswer> answer);

  const TurnParts& parts_;
  ChatServiceImpl& chat_;
  const std::map<std::string, HttpServer::Page> pages_;
  const bool hosts_checked_;
};

}  // namespace llava
