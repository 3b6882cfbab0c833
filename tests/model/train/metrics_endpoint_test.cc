#include "model/train/metrics_endpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/ip/tcp.hpp>
#include <cmath>
#include <iterator>
#include <stdexcept>

namespace llava {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(MetricsTextTest, HoldsTheLastStep) {
  StepReport report;
  report.step = 12;
  report.loss = 0.25;
  report.tokens = 600;
  report.seconds = 0.5;
  report.figures = {{"key_accuracy", 0.5}, {"place_loss", NAN}};
  const std::string text = MetricsText("finetune", report);
  EXPECT_THAT(text,
              HasSubstr("# TYPE llava_train_step gauge\nllava_train_step{kind=\"finetune\"} 12\n"));
  EXPECT_THAT(text, HasSubstr("llava_train_tokens_per_second{kind=\"finetune\"} 1200\n"));
  EXPECT_THAT(text, HasSubstr("llava_train_figure{kind=\"finetune\",name=\"key_accuracy\"} 0.5\n"));
  EXPECT_THAT(text, HasSubstr("name=\"place_loss\"} NaN\n"));
  const std::string help = "# HELP llava_train_figure ";
  EXPECT_EQ(text.find(help), text.rfind(help)) << "help stands once before all values";
}

TEST(MetricsEndpointTest, TakesAFreePortAndRefusesWhatItCannotRead) {
  const auto endpoint = MetricsEndpoint::Start("127.0.0.1:0", "align");
  EXPECT_NE(endpoint->address(), "127.0.0.1:0");
  for (const char* wrong : {"localhost", "here:80", "127.0.0.1:port", "127.0.0.1:99999", ""}) {
    EXPECT_THAT([&] { MetricsEndpoint::Start(wrong, "align"); },
                ThrowsMessage<std::invalid_argument>(HasSubstr("expected IP:PORT")));
  }
  EXPECT_THROW(MetricsEndpoint::Start(endpoint->address(), "align"), std::runtime_error);
}

TEST(MetricsEndpointTest, TheNewestEvaluationStays) {
  const auto endpoint = MetricsEndpoint::Start("127.0.0.1:0", "align");
  const auto scraped = [&] {
    const std::string address = endpoint->address();
    boost::asio::ip::tcp::iostream stream("127.0.0.1", address.substr(address.rfind(':') + 1));
    stream << "GET /metrics HTTP/1.0\r\n\r\n" << std::flush;
    return std::string(std::istreambuf_iterator<char>(stream), {});
  };
  StepReport evaluated, next;
  evaluated.evaluation = {{"held_out_loss", 0.5}};
  next.step = 2;
  endpoint->Update(evaluated);
  endpoint->Update(next);
  EXPECT_THAT(scraped(), HasSubstr("llava_train_step{kind=\"align\"} 2\n"));
  EXPECT_THAT(scraped(), HasSubstr("{kind=\"align\",name=\"held_out_loss\"} 0.5\n"));
  evaluated.evaluation = {{"held_out_loss", 0.25}};
  endpoint->Update(evaluated);
  EXPECT_THAT(scraped(), HasSubstr("{kind=\"align\",name=\"held_out_loss\"} 0.25\n"));
}

}  // namespace
}  // namespace llava
