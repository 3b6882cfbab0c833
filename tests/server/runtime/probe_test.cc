#include "server/runtime/probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio.hpp>
#include <chrono>
#include <cstdlib>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/runtime/http_server.h"
#include "tests/support/certificates.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;

class ProbeTest : public testing::Test {
 protected:
  void Serve(const TlsFiles& tls = {}) {
    HttpServerOptions options;
    options.tls = tls;
    auto server =
        HttpServer::Start(options, {{"/readyz", [this](const HttpRequest&) {
                                       return ready ? HttpResponse{200, "text/x", "{}"}
                                                    : HttpResponse{503, "text/x", "no tower yet\n"};
                                     }}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  // With more patience than a machine is busy.
  static std::string Why(const std::string& address) {
    return WhyNotReady(address, std::chrono::seconds(60));
  }
  std::string address(const std::string& host = "") const {
    return absl::StrCat(host, host.empty() ? "" : ":", server_->port());
  }

  std::atomic<bool> ready = true;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(ProbeTest, SaysWhetherAServiceIsReady) {
  Serve();
  EXPECT_EQ(Why(address()), "");
  EXPECT_EQ(Why(address("127.0.0.1")), "");
  EXPECT_EQ(Why(address("localhost")), "");
  ready = false;
  EXPECT_EQ(Why(address()), "no tower yet");
  EXPECT_THAT(Why("no such thing"), HasSubstr("nothing listens"));
  // A port that is somebody's, so that no other test gets it, and at which nobody listens.
  boost::asio::io_context context;
  boost::asio::ip::tcp::socket deaf(context, {boost::asio::ip::make_address("127.0.0.1"), 0});
  const std::string port = absl::StrCat(deaf.local_endpoint().port());
  EXPECT_THAT(Why(port), HasSubstr("nothing listens at 127.0.0.1:" + port));
}

TEST_F(ProbeTest, SpeaksTlsWhereTheServiceDoesAndNeedsNoCertificate) {
  const TempFolder folder;
  const TestCertificates certificates(folder.path());
  certificates.Authority("ca");
  certificates.Leaf("server", "ca");
  Serve({certificates.Certificate("server"), certificates.Key("server"),
         certificates.Certificate("ca")});
  EXPECT_EQ(Why(address()), "");
  ready = false;
  EXPECT_EQ(Why(address()), "no tower yet");
}

TEST_F(ProbeTest, WaitsForNobodyForEver) {
  boost::asio::io_context context;
  boost::asio::ip::tcp::acceptor silent(context, {boost::asio::ip::make_address("127.0.0.1"), 0});
  EXPECT_THAT(WhyNotReady(absl::StrCat(silent.local_endpoint().port())),
              HasSubstr("no answer in HTTP"));
}

TEST(ProbeProgramTest, HelpIsNoError) {
  const std::string program = ProgramPath("llava-probe");
  EXPECT_EQ(std::system((program + " --help 2>&1 >/dev/null | grep -q . && exit 9; " + program +
                         " --help | grep -q '^usage: llava-probe'")
                            .c_str()),
            0);
  EXPECT_EQ(WEXITSTATUS(std::system((program + " --help >/dev/null").c_str())), 0);
  EXPECT_EQ(WEXITSTATUS(std::system((program + " --port 1 2>/dev/null").c_str())), 2);
  EXPECT_EQ(WEXITSTATUS(std::system((program + " 2>/dev/null").c_str())), 2);
}

}  // namespace
}  // namespace llava
