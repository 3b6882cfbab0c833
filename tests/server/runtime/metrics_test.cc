#include "server/runtime/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricsTest, RendersWhatMoved) {
  Metrics metrics("test");
  metrics.Counter("llava_test_requests_total", "Requests.", {{"code", "OK"}}).Increment(3);
  metrics.Gauge("llava_test_queue", "Waiting.").Set(7);
  metrics.Histogram("llava_test_seconds", "Time.").Observe(0.2);
  const std::string text = metrics.Render();
  EXPECT_THAT(text, HasSubstr("llava_test_requests_total{code=\"OK\"} 3"));
  EXPECT_THAT(text, HasSubstr("llava_test_queue 7"));
  EXPECT_THAT(text, HasSubstr("llava_test_seconds_bucket{le=\"0.25\"} 1"));
  EXPECT_THAT(text, HasSubstr("llava_test_seconds_bucket{le=\"0.1\"} 0"));
  EXPECT_THAT(text, HasSubstr("llava_build_info{"));
}

TEST(MetricsTest, SameNameAndLabelsAreTheSameMetric) {
  Metrics metrics("test");
  auto& first = metrics.Counter("llava_test_total", "Things.", {{"kind", "a"}});
  EXPECT_EQ(&first, &metrics.Counter("llava_test_total", "Things.", {{"kind", "a"}}));
  EXPECT_NE(&first, &metrics.Counter("llava_test_total", "Things.", {{"kind", "b"}}));
}

TEST(MetricsTest, AGaugeThatIsRemovedIsGone) {
  Metrics metrics("test");
  metrics.Gauge("llava_test_info", "Versions.", {{"version", "1"}}).Set(1);
  metrics.Gauge("llava_test_info", "Versions.", {{"version", "2"}}).Set(1);
  metrics.RemoveGauge("llava_test_info", {{"version", "1"}});
  metrics.RemoveGauge("llava_test_info", {{"version", "3"}});
  const std::string text = metrics.Render();
  EXPECT_THAT(text, Not(HasSubstr("version=\"1\"")));
  EXPECT_THAT(text, HasSubstr("llava_test_info{version=\"2\"} 1"));
  EXPECT_THAT(text, Not(HasSubstr("version=\"3\"")));
}

}  // namespace
}  // namespace llava
