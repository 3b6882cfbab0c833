#include "server/runtime/tls.h"

#include <gmock/gmock.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <boost/asio.hpp>
#include <boost/asio/ssl.hpp>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/runtime/http_server.h"
#include "server/runtime/process_metrics.h"
#include "server/runtime/service_process.h"
#include "server/runtime/settings.h"
#include "tests/support/certificates.h"
#include "tests/support/eventually.h"
#include "tests/support/slowdown.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::StartsWith;
using tcp = boost::asio::ip::tcp;
namespace ssl = boost::asio::ssl;

// While it lives this process opens no file.
class NoMoreFiles {
 public:
  NoMoreFiles() {
    getrlimit(RLIMIT_NOFILE, &usual_);
    const rlimit none{0, usual_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
  }
  ~NoMoreFiles() { setrlimit(RLIMIT_NOFILE, &usual_); }
  NoMoreFiles(const NoMoreFiles&) = delete;
  NoMoreFiles& operator=(const NoMoreFiles&) = delete;

 private:
  rlimit usual_{};
};

class TlsTest : public testing::Test {
 protected:
  TlsTest() {
    certificates_ = std::make_unique<TestCertificates>(folder_);
    certificates_->Authority("ca");
    certificates_->Authority("other");
    certificates_->Leaf("server", "ca");
    certificates_->Leaf("client", "ca");
    certificates_->Leaf("stranger", "other");
  }

  TlsFiles Files(const std::string& name, const std::string& authority) const {
    return {name.empty() ? "" : certificates_->Certificate(name),
            name.empty() ? "" : certificates_->Key(name),
            authority.empty() ? "" : certificates_->Certificate(authority)};
  }
  std::string Complaint(const TlsFiles& files) const {
    return std::string(CheckTlsFiles(files).message());
  }
  // Does a call of a client with these files reach the server? With TLS 1.3 a client learns only
  // after its handshake that its certificate was refused.
  static bool Connects(int port, const TlsFiles& files) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    grpc::GenericStub stub(grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port),
                                                     MakeChannelCredentials(files), arguments));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kSlowdown * std::chrono::seconds(60));
    grpc::CompletionQueue queue;
    const grpc::ByteBuffer nothing;
    const auto call = stub.PrepareUnaryCall(&context, "/no.such.Service/Method", nothing, &queue);
    call->StartCall();
    grpc::ByteBuffer answer;
    grpc::Status status;
    call->Finish(&answer, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    queue.Shutdown();
    EXPECT_NE(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    return status.error_code() == grpc::StatusCode::UNIMPLEMENTED;
  }
  std::unique_ptr<grpc::Server> Serve(const TlsFiles& files, int* port) {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", MakeServerCredentials(files), port);
    return builder.BuildAndStart();
  }

  const TempFolder temp_;
  const std::string folder_ = temp_.path();
  std::unique_ptr<TestCertificates> certificates_;
};

TEST_F(TlsTest, NamesTheFileThatIsWrong) {
  EXPECT_EQ(Complaint({}), "");
  EXPECT_EQ(Complaint(Files("server", "ca")), "");
  TlsFiles files = Files("server", "");
  files.key = certificates_->Key("client");
  EXPECT_THAT(Complaint(files), StartsWith(files.key));
  files.key = folder_ + "/none";
  EXPECT_THAT(Complaint(files), HasSubstr("/none: cannot be read"));
  files = Files("server", "ca");
  std::ofstream(folder_ + "/text") << "hello";
  files.authorities = folder_ + "/text";
  EXPECT_THAT(Complaint(files), StartsWith(files.authorities));
  files = Files("server", "");
  files.certificate = folder_ + "/text";
  EXPECT_THAT(Complaint(files), HasSubstr("no certificate"));
  files.certificate = folder_;
  EXPECT_THAT(Complaint(files), StartsWith(folder_ + ":"));
}

TEST_F(TlsTest, ClientsTrustWhomTheyKnow) {
  int port = 0;
  const auto server = Serve(Files("server", ""), &port);
  ASSERT_TRUE(server);
  EXPECT_TRUE(Connects(port, Files("", "ca")));
  EXPECT_FALSE(Connects(port, Files("", "other")));
  EXPECT_FALSE(Connects(port, {}));
  server->Shutdown();
}

TEST_F(TlsTest, MutualTlsLetsInWhoIsSigned) {
  int port = 0;
  const auto server = Serve(Files("server", "ca"), &port);
  ASSERT_TRUE(server);
  EXPECT_TRUE(Connects(port, Files("client", "ca")));
  EXPECT_FALSE(Connects(port, Files("", "ca")));
  EXPECT_FALSE(Connects(port, Files("stranger", "ca")));
  server->Shutdown();
}

// As in a container: without keys, where strangers could call.
TEST_F(TlsTest, ClientCertificatesAloneAllowAnyHost) {
  const TlsFiles files = Files("server", "ca");
  for (const bool mutual : {true, false}) {
    ProcessOptions options;
    Settings settings("llava-probe", "");
    options.Declare(settings);
    std::vector<const char*> arguments = {"llava-probe",
                                          "--host",
                                          "0.0.0.0",
                                          "--tls-cert",
                                          files.certificate.c_str(),
                                          "--tls-key",
                                          files.key.c_str(),
                                          "--tls-client-ca",
                                          files.authorities.c_str()};
    if (!mutual) arguments.resize(arguments.size() - 2);
    testing::internal::CaptureStderr();
    const auto code = settings.Parse(static_cast<int>(arguments.size()), arguments.data());
    const std::string complaint = testing::internal::GetCapturedStderr();
    EXPECT_EQ(code, mutual ? std::nullopt : std::optional<int>(2)) << complaint;
    EXPECT_THAT(complaint, HasSubstr(mutual ? "" : "--tls-client-ca"));
  }
}

TEST_F(TlsTest, CertificatesAreReadAgainAndBadOnesAreNot) {
  int port = 0;
  const auto server = Serve(Files("server", ""), &port);
  ASSERT_TRUE(server);
  const auto comes_to_trust = [&](const std::string& authority) {
    return Eventually([&] { return Connects(port, Files("", authority)); });
  };
  EXPECT_TRUE(Connects(port, Files("", "ca")));
  certificates_->Leaf("server", "other");
  EXPECT_TRUE(comes_to_trust("other"));
  EXPECT_FALSE(Connects(port, Files("", "ca")));

  std::ofstream(certificates_->Certificate("server")) << "broken";
  for (int i = 0; i < 50; ++i) {  // both we and gRPC have looked again
    std::this_thread::sleep_for(milliseconds(100));
    ASSERT_TRUE(Connects(port, Files("", "other"))) << i;
  }
  certificates_->Leaf("server", "ca");
  EXPECT_TRUE(comes_to_trust("ca"));
  server->Shutdown();
}

// The version that a client gets which speaks no newer one than `newest`; empty: it is refused.
std::string VersionOf(int port, int newest) {
  boost::asio::io_context context;
  ssl::context tls(ssl::context::tls_client);
  SSL_CTX_set_security_level(tls.native_handle(), 0);  // which forbids the old ones
  SSL_CTX_set_min_proto_version(tls.native_handle(), TLS1_VERSION);
  SSL_CTX_set_max_proto_version(tls.native_handle(), newest);
  ssl::stream<tcp::socket> stream(context, tls);
  const std::string gRPC = "\x02h2";
  SSL_set_alpn_protos(stream.native_handle(), reinterpret_cast<const unsigned char*>(gRPC.data()),
                      static_cast<unsigned>(gRPC.size()));
  stream.next_layer().connect(
      {boost::asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(port)});
  boost::system::error_code error;
  stream.handshake(ssl::stream_base::client, error);
  return error ? "" : SSL_get_version(stream.native_handle());
}

TEST_F(TlsTest, OldVersionsAreRefused) {
  int port = 0;
  const auto server = Serve(Files("server", ""), &port);
  ASSERT_TRUE(server);
  EXPECT_EQ(VersionOf(port, TLS1_1_VERSION), "");
  EXPECT_EQ(VersionOf(port, TLS1_2_VERSION), "TLSv1.2");
  EXPECT_EQ(VersionOf(port, TLS1_3_VERSION), "TLSv1.3");
  server->Shutdown();
}

class HttpsTest : public TlsTest {
 protected:
  void StartServer(const TlsFiles& files) {
    HttpServerOptions options;
    options.tls = files;
    options.failed_handshakes = &failed_handshakes_;
    const auto page = [](const HttpRequest&) { return HttpResponse{200, "text/x", "hello"}; };
    auto server = HttpServer::Start(
        options, std::map<std::string, HttpServer::Page>{{"/livez", page}, {"/metrics", page}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  // The answer's first line, or why there is none.
  std::string Get(const std::string& path, const TlsFiles& files) {
    boost::asio::io_context context;
    ssl::context tls(ssl::context::tls_client);
    tls.load_verify_file(files.authorities);
    tls.set_verify_mode(ssl::verify_peer);
    if (!files.certificate.empty()) {
      tls.use_certificate_chain_file(files.certificate);
      tls.use_private_key_file(files.key, ssl::context::pem);
    }
    ssl::stream<tcp::socket> stream(context, tls);
    stream.next_layer().connect(
        {boost::asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(server_->port())});
    boost::system::error_code error;
    stream.handshake(ssl::stream_base::client, error);
    if (error) return error.message();
    boost::asio::write(
        stream, boost::asio::buffer("GET " + path + " HTTP/1.1\r\nConnection: close\r\n\r\n"),
        error);
    std::string text;
    boost::asio::read(stream, boost::asio::dynamic_buffer(text), error);
    return text.empty() ? error.message() : text.substr(0, text.find("\r\n"));
  }
  prometheus::Counter failed_handshakes_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpsTest, ServesWhoTrustsIt) {
  StartServer(Files("server", ""));
  EXPECT_THAT(Get("/metrics", Files("", "ca")), StartsWith("HTTP/1.1 200"));
  EXPECT_EQ(failed_handshakes_.Value(), 0);
  EXPECT_THAT(Get("/metrics", Files("", "other")), HasSubstr("certificate verify failed"));
  EXPECT_TRUE(Eventually([&] { return failed_handshakes_.Value() == 1; }));
  // A client without encryption gets nothing and holds up nobody.
  tcp::iostream plain("127.0.0.1", std::to_string(server_->port()));
  plain << "GET /metrics HTTP/1.1\r\n\r\n" << std::flush;
  EXPECT_THAT(Get("/livez", Files("", "ca")), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpsTest, OldVersionsAreRefused) {
  StartServer(Files("server", ""));
  EXPECT_EQ(VersionOf(server_->port(), TLS1_1_VERSION), "");
  EXPECT_EQ(VersionOf(server_->port(), TLS1_2_VERSION), "TLSv1.2");
  EXPECT_EQ(VersionOf(server_->port(), TLS1_3_VERSION), "TLSv1.3");
}

TEST_F(HttpsTest, ProbesNeedNoCertificateTheRestDoes) {
  StartServer(Files("server", "ca"));
  EXPECT_THAT(Get("/livez", Files("", "ca")), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Get("/metrics", Files("", "ca")), StartsWith("HTTP/1.1 403"));
  EXPECT_THAT(Get("/metrics", Files("client", "ca")), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Get("/metrics", Files("stranger", "ca")), Not(StartsWith("HTTP/1.1")));
}

TEST_F(HttpsTest, CertificatesAreReadAgainAndBadOnesAreNot) {
  StartServer(Files("server", ""));
  const auto trusts = [&](const std::string& authority) {
    return Get("/livez", Files("", authority)).starts_with("HTTP/1.1 200");
  };
  EXPECT_TRUE(trusts("ca"));
  certificates_->Leaf("server", "other");
  EXPECT_TRUE(Eventually([&] { return trusts("other"); }));
  std::ofstream(certificates_->Certificate("server")) << "broken";
  for (int i = 0; i < 25; ++i) {  // it is looked at again meanwhile
    std::this_thread::sleep_for(milliseconds(100));
    ASSERT_TRUE(trusts("other")) << i;
  }
  certificates_->Leaf("server", "ca");
  EXPECT_TRUE(Eventually([&] { return trusts("ca"); }));
}

TEST_F(TlsTest, WhatCouldNotBeReadOnceIsTriedAgain) {
  const TlsFiles files = Files("server", "");
  const auto before = CurrentTlsContext(files);
  ASSERT_TRUE(before.ok()) << before.status();
  certificates_->Leaf("next", "ca");
  {
    const NoMoreFiles none;
    std::filesystem::rename(certificates_->Certificate("next"), files.certificate);
    std::filesystem::rename(certificates_->Key("next"), files.key);
    std::this_thread::sleep_for(milliseconds(2500));  // it is looked at twice
    ASSERT_EQ(*CurrentTlsContext(files), *before);
  }
  EXPECT_TRUE(Eventually([&] { return *CurrentTlsContext(files) != *before; }));
}

// As `cp -p` and the like leave them.
TEST_F(TlsTest, FilesThatTellNeitherByTimeNorBySizeAreReadAgain) {
  const TlsFiles files = Files("server", "");
  certificates_->Leaf("next", "ca");
  for (const auto& [path, next] : {std::pair(files.certificate, certificates_->Certificate("next")),
                                   std::pair(files.key, certificates_->Key("next"))}) {
    const size_t size = std::max(ReadBytes(path).size(), ReadBytes(next).size());
    for (const std::string& each : {path, next}) {  // what lies behind the last line means nothing
      WriteBytes(each, ReadBytes(each) + std::string(size - ReadBytes(each).size(), '\n'));
    }
  }
  const auto before = CurrentTlsContext(files);
  ASSERT_TRUE(before.ok()) << before.status();
  for (const auto& [path, next] : {std::pair(files.certificate, certificates_->Certificate("next")),
                                   std::pair(files.key, certificates_->Key("next"))}) {
    const auto time = std::filesystem::last_write_time(path);
    WriteBytes(path, ReadBytes(next));
    std::filesystem::last_write_time(path, time);
  }
  EXPECT_TRUE(Eventually([&] { return *CurrentTlsContext(files) != *before; }));
}

TEST_F(HttpsTest, TellsWhenCertificatesExpire) {
  StartServer(Files("server", "ca"));
  const std::string file = certificates_->Certificate("server");
  const auto left = [&] { return CertificateExpiries().at(file) - std::time(nullptr); };
  EXPECT_NEAR(static_cast<double>(left()), 2 * 86400, 3600);
  EXPECT_FALSE(CertificateExpiries().contains(certificates_->Certificate("ca")));
  Metrics metrics("test");
  ShowProcess(metrics);
  EXPECT_THAT(metrics.Render(),
              HasSubstr("llava_tls_certificate_expires_seconds{file=\"" + file + "\"} "));
  certificates_->Leaf("server", "ca", /*days=*/9);  // renewed
  EXPECT_TRUE(Eventually([&] { return left() > 8 * 86400; }));
}

TEST_F(HttpsTest, BadCertificatesAreNotServed) {
  HttpServerOptions options;
  options.tls = Files("server", "");
  options.tls.key = certificates_->Key("client");
  const auto server = HttpServer::Start(options, std::map<std::string, HttpServer::Page>{});
  EXPECT_TRUE(absl::IsInvalidArgument(server.status())) << server.status();
  EXPECT_THAT(std::string(server.status().message()), StartsWith(options.tls.key));
}

}  // namespace
}  // namespace llava
