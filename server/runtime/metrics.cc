#include "server/runtime/metrics.h"

#include <prometheus/text_serializer.h>

#include "server/runtime/build_info.h"

namespace llava {

const std::vector<double>& LatencyBuckets() {
  static const std::vector<double> buckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                              0.1,   0.25,   0.5,   1,    2.5,   5,
                                              10,    30,     60,    120,  300,   600};
  return buckets;
}

Metrics::Metrics(const std::string& service) {
  Gauge("llava_build_info", "Build of this process; always 1.",
        {{"service", service}, {"version", BuildVersion()}, {"commit", BuildCommit()}})
      .Set(1);
}

// Registry hands out the same family for the same name, and the family the same metric for the same
// labels, so declaring twice is harmless.
prometheus::Counter& Metrics::Counter(const std::string& name, const std::string& help,
                                      const MetricLabels& labels) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry_).Add(labels);
}

prometheus::Gauge& Metrics::Gauge(const std::string& name, const std::string& help,
                                  const MetricLabels& labels) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry_).Add(labels);
}

prometheus::Histogram& Metrics::Histogram(const std::string& name, const std::string& help,
                                          const MetricLabels& labels,
                                          const std::vector<double>& buckets) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry_).Add(labels,
                                                                                    buckets);
}

void Metrics::RemoveGauge(const std::string& name, const MetricLabels& labels) {
  auto& family = prometheus::BuildGauge().Name(name).Register(registry_);
  family.Remove(&family.Add(labels));
}

std::string Metrics::Render() const {
  return prometheus::TextSerializer().Serialize(registry_.Collect());
}

}  // namespace llava
