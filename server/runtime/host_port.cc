#include "server/runtime/host_port.h"

#include <boost/asio/ip/address.hpp>

#include "absl/strings/str_cat.h"

namespace llava {

std::string BareHost(const std::string& host) {
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']' &&
                         host.find(':') != std::string::npos;
  return bracketed ? host.substr(1, host.size() - 2) : host;
}

bool IsLoopbackHost(const std::string& host) {
  boost::system::error_code error;
  const auto address = boost::asio::ip::make_address(BareHost(host), error);
  return error ? host == "localhost" : address.is_loopback();
}

bool IsListenHost(const std::string& host) {
  boost::system::error_code error;
  boost::asio::ip::make_address(BareHost(host), error);
  return !error || host == "localhost";
}

std::string HostPort(const std::string& host, int port) {
  const std::string bare = BareHost(host);
  const bool v6 = bare.find(':') != std::string::npos;
  return v6 ? absl::StrCat("[", bare, "]:", port) : absl::StrCat(bare, ":", port);
}

}  // namespace llava
