// Pictures named by URL: from where they may come, and that nothing else is reached or kept.

#include "server/gateway/picture_fetcher.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <netdb.h>
#include <netinet/in.h>

#include <atomic>
#include <fstream>
#include <future>
#include <thread>

#include "absl/strings/str_cat.h"
#include "server/gateway/public_address.h"
#include "server/runtime/http_server.h"
#include "tests/server/gateway/gateway_harness.h"
#include "tests/support/eventually.h"
#include "tests/support/slowdown.h"

namespace {

// While it is silent the name server says nothing about silent.test.
std::atomic<bool> silent = false, asked = false;

}  // namespace

// In libc's place, for libcurl.
extern "C" int getaddrinfo(const char* name, const char* service, const addrinfo* hints,
                           addrinfo** result) {
  static const auto libc =
      reinterpret_cast<decltype(&getaddrinfo)>(dlsym(RTLD_NEXT, "getaddrinfo"));
  if (name == nullptr || std::string_view(name) != "silent.test") {
    return libc(name, service, hints, result);
  }
  asked = true;
  silent.wait(true);
  return EAI_AGAIN;
}

namespace llava {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::StartsWith;

bool IsPublic(const std::string& text) {
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  if (inet_pton(AF_INET, text.c_str(), &v4.sin_addr) == 1) {
    return IsPublicAddress(reinterpret_cast<const sockaddr&>(v4));
  }
  EXPECT_EQ(inet_pton(AF_INET6, text.c_str(), &v6.sin6_addr), 1) << text;
  return IsPublicAddress(reinterpret_cast<const sockaddr&>(v6));
}

TEST(PublicAddressTest, TellsTheInternetFromTheRest) {
  for (const char* address : {"1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.15.0.1",
                              "172.32.0.1", "192.167.255.255", "198.20.0.1", "223.255.255.255",
                              "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"}) {
    EXPECT_TRUE(IsPublic(address)) << address;
  }
  for (const char* address : {"0.0.0.0",
                              "10.1.2.3",
                              "100.64.0.1",
                              "100.127.255.255",
                              "127.0.0.1",
                              "127.255.255.254",
                              "169.254.169.254",
                              "172.16.0.1",
                              "172.31.255.255",
                              "192.0.0.1",
                              "192.0.2.1",
                              "192.88.99.1",
                              "192.168.0.1",
                              "198.18.0.1",
                              "198.19.255.255",
                              "198.51.100.1",
                              "203.0.113.9",
                              "224.0.0.1",
                              "239.255.255.255",
                              "240.0.0.1",
                              "255.255.255.255",
                              "::",
                              "::1",
                              "::ffff:127.0.0.1",
                              "::ffff:10.0.0.1",
                              "::127.0.0.1",
                              "64:ff9b::7f00:1",
                              "fe80::1",
                              "fc00::1",
                              "fd12::1",
                              "ff02::1",
                              "2001::1",
                              "2001:db8::1",
                              "2002:7f00:1::",
                              "3fff::1"}) {
    EXPECT_FALSE(IsPublic(address)) << address;
  }
  EXPECT_FALSE(IsPublicAddress(sockaddr{.sa_family = AF_UNIX, .sa_data = {}}));
}

TEST(CheckPictureUrlTest, TakesWhatTheListNames) {
  PictureUrlOptions options;
  options.hosts = "cats.example, *.pictures.example,local.example:8080";
  ASSERT_TRUE(options.Check().ok());
  for (const char* url : {"https://cats.example/a.png", "http://CATS.example:80/a",
                          "https://cats.example./x", "https://a.pictures.example/?q=1",
                          "https://a.b.pictures.example", "http://local.example:8080/x"}) {
    EXPECT_TRUE(CheckPictureUrl(url, options).ok()) << url << CheckPictureUrl(url, options);
  }
  for (const char* url : {"",
                          "cats.example/a.png",
                          "ftp://cats.example/a",
                          "file:///etc/passwd",
                          "gopher://x",
                          "https://cats.example:8443/a",
                          "http://cats.example:443/",
                          "https://dogs.example/a",
                          "https://pictures.example/a",
                          "https://notpictures.example/",
                          "https://evilcats.example/",
                          "https://cats.example.evil.example/",
                          "http://local.example/x",
                          "https://ann@cats.example/a",
                          "https://ann:pw@cats.example/a",
                          "https://cats.example@evil.example/",
                          "https://evil.example#@cats.example/",
                          "https://evil.example\\@cats.example/",
                          "http://127.0.0.1/",
                          "https://cats.example\n/"}) {
    const auto status = CheckPictureUrl(url, options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << url;
    EXPECT_THAT(std::string(status.message()), StartsWith("url ")) << url;
  }
  EXPECT_FALSE(CheckPictureUrl("https://cats.example/" + std::string(3000, 'a'), options).ok());
  options.hosts = "*";
  EXPECT_TRUE(CheckPictureUrl("https://anything.example/", options).ok());
  EXPECT_FALSE(CheckPictureUrl("https://anything.example:22/", options).ok());
  for (const char* hosts : {"http://cats.example", "a b", "cat*.example", ",*.*"}) {
    options.hosts = hosts;
    EXPECT_FALSE(options.Check().ok()) << hosts;
  }
}

// Gives pictures, and trouble, by path.
class PictureServer : public HttpHandler {
 public:
  PictureServer() {
    auto server = HttpServer::Start(HttpServerOptions{}, *this);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  ~PictureServer() override {
    {
      MutexLock lock(mutex_);
      held_.clear();
    }
    server_.reset();
  }
  std::optional<HttpResponse> OnHead(const HttpRequest&, uint64_t&) override {
    return std::nullopt;
  }
  void OnRequest(HttpRequest request, std::shared_ptr<HttpAnswer> answer) override {
    ++requests;
    if (request.path == "/picture") return answer->Send({200, "image/bmp", FakePicture(1)});
    if (request.path == "/other") return answer->Send({200, "image/bmp", FakePicture(2)});
    if (request.path == "/text") return answer->Send({200, "text/html", "<html>"});
    if (request.path == "/long") return answer->Send({200, "x", std::string(200'000, 'x')});
    if (request.path == "/redirect")
      return answer->Send({302, "x", "", {{"Location", "/picture"}}});
    if (request.path == "/endless") {
      answer->Begin({200, "x", std::string(1000, 'x')});
      for (int i = 0; i < 300; ++i) answer->Write(std::string(1000, 'x'));
    }
    if (request.path == "/slow" || request.path == "/endless") {
      answer->SetOnGone([this] { ++gone; });
      MutexLock lock(mutex_);
      held_.push_back(std::move(answer));
      return;
    }
    answer->Send({404, "x", "secret page"});
  }
  std::string Url(const std::string& path) const {
    return absl::StrCat("http://127.0.0.1:", server_->port(), path);
  }
  std::string host() const { return absl::StrCat("127.0.0.1:", server_->port()); }

  std::atomic<int> requests = 0, gone = 0;

 private:
  Mutex mutex_;
  std::vector<std::shared_ptr<HttpAnswer>> held_;
  std::unique_ptr<HttpServer> server_;
};

class PictureFetcherTest : public testing::Test {
 protected:
  PictureFetcherTest() {
    options_.hosts = server_.host();
    options_.private_addresses = true;
  }
  void Start() { fetcher_ = std::make_unique<PictureFetcher>(options_, 100'000, gateway_metrics_); }
  static PictureFetcher::Order OrderOf(std::shared_ptr<v1::ChatRequest> request,
                                       const std::string& key = "") {
    PictureFetcher::Order order;
    order.request = std::move(request);
    order.key = key;
    return order;
  }
  absl::Status Fetch(const std::vector<std::string>& paths) {
    request_ = std::make_shared<v1::ChatRequest>();
    for (const std::string& path : paths) request_->add_images()->set_url(server_.Url(path));
    std::promise<absl::Status> done;
    fetcher_->Fetch(OrderOf(request_),
                    [&](absl::Status status) { done.set_value(std::move(status)); });
    return done.get_future().get();
  }

  Metrics metrics_{"gateway"};
  GatewayMetrics gateway_metrics_{metrics_};
  PictureServer server_;
  PictureUrlOptions options_;
  std::shared_ptr<v1::ChatRequest> request_;
  std::unique_ptr<PictureFetcher> fetcher_;
};

TEST_F(PictureFetcherTest, PutsTheBytesInPlaceOfTheUrls) {
  Start();
  ASSERT_TRUE(Fetch({"/picture", "/other"}).ok());
  EXPECT_EQ(request_->images(0).data(), FakePicture(1));
  EXPECT_EQ(request_->images(1).data(), FakePicture(2));
  EXPECT_FALSE(PictureFetcher::HasUrls(*request_));
  auto conversation = std::make_shared<v1::ChatRequest>();
  conversation->add_messages();
  conversation->add_messages()->add_images()->set_url(server_.Url("/other"));
  EXPECT_TRUE(PictureFetcher::HasUrls(*conversation));
  std::promise<absl::Status> done;
  fetcher_->Fetch(OrderOf(conversation),
                  [&](absl::Status status) { done.set_value(std::move(status)); });
  ASSERT_TRUE(done.get_future().get().ok());
  EXPECT_EQ(conversation->messages(1).images(0).data(), FakePicture(2));
}

TEST_F(PictureFetcherTest, SaysWhyNot) {
  options_.timeout = std::chrono::minutes(1);
  Start();
  const auto refused = [&](const std::string& path, const std::string& why) {
    const auto status = Fetch({"/picture", path});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_THAT(std::string(status.message()),
                testing::AllOf(StartsWith("images[1]: url "), HasSubstr(why)));
    EXPECT_THAT(std::string(status.message()), testing::Not(HasSubstr("secret")));
  };
  refused("/none", "HTTP status 404");
  refused("/redirect", "not followed");
  refused("/long", "100000 bytes that are allowed");
  refused("/endless", "100000 bytes that are allowed");
  options_.timeout = milliseconds(500);
  Start();
  EXPECT_THAT(std::string(Fetch({"/slow"}).message()),
              testing::AllOf(StartsWith("images[0]: url "), HasSubstr("within 500 ms")));
}

TEST_F(PictureFetcherTest, ReachesNoPrivateAddressUnlessTold) {
  options_.private_addresses = false;
  options_.hosts = absl::StrCat(server_.host(), ",localhost:", server_.host().substr(10));
  Start();
  EXPECT_THAT(std::string(Fetch({"/picture"}).message()), HasSubstr("no public address"));
  auto by_name = std::make_shared<v1::ChatRequest>();
  by_name->add_images()->set_url("http://localhost" + server_.host().substr(9) + "/picture");
  std::promise<absl::Status> done;
  fetcher_->Fetch(OrderOf(by_name),
                  [&](absl::Status status) { done.set_value(std::move(status)); });
  EXPECT_THAT(std::string(done.get_future().get().message()), HasSubstr("no public address"));
  EXPECT_EQ(server_.requests, 0);
}

TEST_F(PictureFetcherTest, ASilentNameServerHoldsUpNobodyElse) {
  options_.hosts += ",silent.test";
  options_.timeout = std::chrono::minutes(10);
  Start();
  asked = false;
  silent = true;
  auto request = std::make_shared<v1::ChatRequest>();
  request->add_images()->set_url("http://silent.test/picture");
  auto order = OrderOf(request);
  std::function<void()> go;
  order.listen = [&](std::function<void()> on_gone) { go = std::move(on_gone); };
  std::promise<absl::Status> done;
  fetcher_->Fetch(std::move(order),
                  [&](absl::Status status) { done.set_value(std::move(status)); });
  EXPECT_TRUE(Eventually([] { return asked.load(); }));
  go();
  auto end = done.get_future();
  const bool ended =
      end.wait_for(kSlowdown * std::chrono::seconds(60)) == std::future_status::ready;
  EXPECT_TRUE(ended);
  if (ended) {
    EXPECT_TRUE(absl::IsCancelled(end.get()));
    EXPECT_TRUE(Fetch({"/picture"}).ok());
  }
  silent = false;
  silent.notify_all();
  fetcher_.reset();
}

TEST_F(PictureFetcherTest, ManyAtOnceAndAnEnd) {
  options_.transfers = 4;
  options_.timeout = std::chrono::minutes(1);
  Start();
  std::atomic<int> fine = 0, stopped = 0, full = 0;
  const auto begin = [&](const std::string& path) {
    auto request = std::make_shared<v1::ChatRequest>();
    request->add_images()->set_url(server_.Url(path));
    fetcher_->Fetch(OrderOf(request), [&](const absl::Status& status) {
      if (status.ok()) ++fine;
      if (absl::IsUnavailable(status)) {
        ++(std::string(status.message()).find("shutting down") != std::string::npos ? stopped
                                                                                    : full);
      }
    });
  };
  for (int i = 0; i < 30; ++i) begin("/picture");
  for (int i = 0; i < 12'000 && fine < 30; ++i) std::this_thread::sleep_for(milliseconds(5));
  EXPECT_EQ(fine, 30);
  for (int i = 0; i < 100; ++i) begin("/slow");
  EXPECT_GE(full, 100 - 4 * 16 - 4);
  fetcher_.reset();
  EXPECT_EQ(full + stopped, 100);
}

TEST_F(PictureFetcherTest, AKeyLeavesRoomForOthers) {
  options_.transfers = 1;
  options_.timeout = std::chrono::minutes(1);
  Start();
  std::atomic<int> refused = 0, others = 0;
  std::promise<absl::Status> last;
  const auto begin = [&](const std::string& key, const std::function<void(absl::Status)>& done) {
    auto request = std::make_shared<v1::ChatRequest>();
    request->add_images()->set_url(server_.Url("/slow"));
    fetcher_->Fetch(OrderOf(request, key), done);
  };
  for (int i = 0; i < 30; ++i) {
    begin("ann", [&](const absl::Status& status) {
      if (absl::IsResourceExhausted(status)) ++refused;
      if (absl::IsUnavailable(status)) ++others;
    });
  }
  EXPECT_GE(refused, 30 - 9);
  EXPECT_EQ(others, 0);
  begin("bob", [&](absl::Status status) { last.set_value(std::move(status)); });
  fetcher_.reset();
  EXPECT_THAT(std::string(last.get_future().get().message()), HasSubstr("shutting down"));
}

class PictureUrlChatTest : public GatewayTest {
 protected:
  PictureUrlChatTest() {
    options_.picture_urls.hosts = server_.host();
    options_.picture_urls.private_addresses = true;
  }
  PictureServer server_;
};

TEST_F(PictureUrlChatTest, AQuestionWithAUrlIsOneWithItsPicture) {
  StartGateway();
  const std::string session = NewSession();
  v1::ChatRequest request = Question(session, "what is this");
  request.add_images()->set_url(server_.Url("/picture"));
  request.set_idempotency_key("once");
  const Answer answer = Ask(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_THAT(answer.text, HasSubstr("pictures: 1"));
  const auto turns = Turns(session);
  ASSERT_EQ(turns.size(), 1u);
  EXPECT_EQ(turns[0].images(0).id(), ToHex(HashBytes(FakePicture(1))));
  // The same request again is the same turn, not another one.
  EXPECT_EQ(Ask(request).text, answer.text);
  EXPECT_EQ(Turns(session).size(), 1u);
  EXPECT_EQ(Metric("llava_gateway_picture_fetches_total{result=\"ok\"}"), 2);

  request = Question(session, "and this");
  request.add_images()->set_url(server_.Url("/text"));
  EXPECT_EQ(Ask(request).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.mutable_images(0)->set_url("http://169.254.169.254/latest/meta-data");
  const Answer stranger = Ask(request);
  EXPECT_EQ(stranger.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(stranger.status.error_message(), HasSubstr("images[0]: url leads to"));
  EXPECT_EQ(Metric("llava_gateway_picture_fetches_total{result=\"refused\"}"), 1);
  EXPECT_EQ(Turns(session).size(), 1u);
}

TEST_F(PictureUrlChatTest, TooManyPicturesAreNotFetched) {
  options_.max_images_per_turn = 2;
  StartGateway();
  v1::ChatRequest request = Question(NewSession(), "what are these");
  for (int i = 0; i < 3; ++i) request.add_images()->set_url(server_.Url("/picture"));
  Answer answer = Ask(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("images has 3 pictures"));
  v1::ChatRequest conversation;
  conversation.add_messages()->set_role(v1::ROLE_USER);
  *conversation.mutable_messages(0)->mutable_images() = request.images();
  answer = Ask(conversation);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("messages[0].images has 3 pictures"));
  EXPECT_EQ(server_.requests, 0);
}

// Each has 200'000 bytes; the last one never comes, and is not waited for.
TEST_F(PictureUrlChatTest, WhatArrivesCountsAsItArrives) {
  options_.picture_urls.timeout = std::chrono::minutes(10);
  options_.request_bytes = 450'000;
  StartGateway();
  v1::ChatRequest request = Question(NewSession(), "what are these");
  for (const char* path : {"/long", "/long", "/long", "/slow"}) {
    request.add_images()->set_url(server_.Url(path));
  }
  Answer answer = Ask(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("--request-bytes"));
  EXPECT_TRUE(Eventually([&] { return Metric("llava_gateway_request_bytes") == 0; }));
  StopGateway();

  options_.request_bytes = 1u << 30;
  options_.max_turn_bytes = 450'000;
  StartGateway();
  answer = Ask(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("allowed are 450000"));
}

TEST_F(PictureUrlChatTest, ACallerThatGoesEndsItsFetch) {
  options_.picture_urls.timeout = std::chrono::minutes(10);
  StartGateway();
  v1::ChatRequest request = Question(NewSession(), "what is this");
  request.add_images()->set_url(server_.Url("/slow"));
  const auto context = Context();
  const auto reader = stub_->Chat(context.get(), request);
  ASSERT_TRUE(Eventually([&] { return server_.requests == 1; }));
  context->TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return server_.gone == 1; }));
}

TEST_F(PictureUrlChatTest, TheLimitOfTheKeyComesBeforeTheFetch) {
  options_.keys_file = folder_.At("keys.yaml");
  std::ofstream(options_.keys_file)
      << "- {name: ann, role: user, requests-per-minute: 2, sha256: " << ToHex(HashBytes("ann"))
      << "}\n";
  key_ = "ann";
  StartGateway();
  const std::string session = NewSession();
  v1::ChatRequest request = Question(session, "what is this");
  request.add_images()->set_url(server_.Url("/picture"));
  EXPECT_TRUE(Ask(request).status.ok());
  request.mutable_images(0)->set_url(server_.Url("/none"));
  EXPECT_EQ(Ask(request).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(server_.requests, 2);
  const Answer answer = Ask(request);  // a fetch that failed has counted as well
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(server_.requests, 2);
}

}  // namespace
}  // namespace llava
