#include "model/train/metrics_endpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
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

}  // namespace
}  // namespace llava
