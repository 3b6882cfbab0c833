#include "model/train/metrics_endpoint.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>

namespace llava {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using Tcp = asio::ip::tcp;

std::string NumberText(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  char text[40];
  std::snprintf(text, sizeof(text), "%.10g", value);
  return text;
}

Tcp::endpoint EndpointOf(const std::string& address) {
  const size_t colon = address.rfind(':');
  const std::string port = colon == std::string::npos ? "" : address.substr(colon + 1);
  uint16_t number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  boost::system::error_code fault;
  const auto host = asio::ip::make_address(address.substr(0, colon), fault);
  if (port.empty() || error != std::errc() || end != port.data() + port.size() || fault) {
    throw std::invalid_argument("address \"" + address +
                                "\" cannot be read; expected IP:PORT, as 127.0.0.1:8032");
  }
  return {host, number};
}

// One connection after the other: a scrape takes a moment, and only Prometheus comes.
class Server : public MetricsEndpoint {
 public:
  Server(const std::string& address, std::string kind)
      : kind_(std::move(kind)), acceptor_(context_) {
    const Tcp::endpoint endpoint = EndpointOf(address);
    boost::system::error_code error;
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(16, error);
    if (error) {
      throw std::runtime_error("metrics cannot be served at " + address + ": " + error.message());
    }
    Accept();
    thread_ = std::thread([this] { context_.run(); });
  }

  ~Server() override {
    context_.stop();
    thread_.join();
  }

  void Update(const StepReport& report) override {
    StepReport told = report;
    const std::lock_guard lock(mutex_);
    if (told.evaluation.empty()) told.evaluation = evaluation_;
    evaluation_ = told.evaluation;
    text_ = MetricsText(kind_, told);
  }

  std::string address() const override {
    const Tcp::endpoint endpoint = acceptor_.local_endpoint();
    return endpoint.address().to_string() + ":" + std::to_string(endpoint.port());
  }

 private:
  struct Visit {
    explicit Visit(Tcp::socket socket) : stream(std::move(socket)) {}
    beast::tcp_stream stream;
    beast::flat_buffer buffer{8192};
    http::request<http::empty_body> request;
    http::response<http::string_body> response;
  };

  void Accept() {
    acceptor_.async_accept([this](const boost::system::error_code& error, Tcp::socket socket) {
      if (!error) Serve(std::make_shared<Visit>(std::move(socket)));
      if (acceptor_.is_open()) Accept();
    });
  }

  void Serve(const std::shared_ptr<Visit>& visit) {
    visit->stream.expires_after(std::chrono::seconds(10));
    http::async_read(visit->stream, visit->buffer, visit->request,
                     [this, visit](const boost::system::error_code& error, size_t) {
                       if (!error) Answer(visit);
                     });
  }

  void Answer(const std::shared_ptr<Visit>& visit) {
    const bool known = visit->request.target() == "/metrics";
    const bool get = visit->request.method() == http::verb::get;
    visit->response.result(!known ? http::status::not_found
                           : get  ? http::status::ok
                                  : http::status::method_not_allowed);
    visit->response.set(http::field::content_type, "text/plain; version=0.0.4; charset=utf-8");
    visit->response.keep_alive(false);
    if (known && get) {
      const std::lock_guard lock(mutex_);
      visit->response.body() = text_;
    } else {
      visit->response.body() = "GET /metrics is all there is\n";
    }
    visit->response.prepare_payload();
    http::async_write(visit->stream, visit->response,
                      [visit](const boost::system::error_code&, size_t) {
                        boost::system::error_code ignored;
                        visit->stream.socket().shutdown(Tcp::socket::shutdown_send, ignored);
                      });
  }

  const std::string kind_;
  asio::io_context context_{1};
  Tcp::acceptor acceptor_;
  std::mutex mutex_;
  std::string text_;
  Figures evaluation_;  // the newest
  std::thread thread_;
};

}  // namespace

std::string MetricsText(const std::string& kind, const StepReport& report) {
  std::string text;
  const auto add = [&](const std::string& name, const std::string& help, double value,
                       const std::string& label = "") {
    if (text.find("# HELP " + name + " ") == std::string::npos) {
      text += "# HELP " + name + " " + help + "\n# TYPE " + name + " gauge\n";
    }
    text += name + "{kind=\"" + kind + "\"" + label + "} " + NumberText(value) + "\n";
  };
  const double seconds = report.seconds > 0 ? report.seconds : 1;
  add("llava_train_step", "Optimizer steps done.", static_cast<double>(report.step));
  add("llava_train_steps", "Optimizer steps of the whole run.",
      static_cast<double>(report.total_steps));
  add("llava_train_loss", "Loss of the last step.", report.loss);
  add("llava_train_gradient_norm", "Gradient norm before clipping.", report.gradient_norm);
  add("llava_train_learning_rate", "Rate of the first group of parameters.", report.learning_rate);
  add("llava_train_step_seconds", "Wall time of the last step.", report.seconds);
  add("llava_train_data_wait_seconds", "Part of it spent waiting for data.", report.waited_seconds);
  add("llava_train_tokens_per_second", "Tokens of the last step by its time.",
      static_cast<double>(report.tokens) / seconds);
  add("llava_train_samples_per_second", "Samples of the last step by its time.",
      static_cast<double>(report.samples) / seconds);
  add("llava_train_step_skipped", "1 if the last step was not finite.", report.skipped ? 1 : 0);
  for (const auto& [name, value] : report.figures) {
    add("llava_train_figure", "Other figures of the last step.", value, ",name=\"" + name + "\"");
  }
  for (const auto& [name, value] : report.evaluation) {
    add("llava_train_evaluation", "Figures of the newest evaluation.", value,
        ",name=\"" + name + "\"");
  }
  return text;
}

std::unique_ptr<MetricsEndpoint> MetricsEndpoint::Start(const std::string& address,
                                                        const std::string& kind) {
  return std::make_unique<Server>(address, kind);
}

}  // namespace llava
