#pragma once

// Prometheus metrics of a process. Names: llava_<service>_<what>_<unit>, counters end in _total.

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <string>
#include <vector>

namespace llava {

using MetricLabels = std::map<std::string, std::string>;

// Bucket bounds in seconds: 1 ms ... 10 minutes.
const std::vector<double>& LatencyBuckets();

// Thread-safe. Returned metrics live as long as this object; asking again for the same name and
// labels gives the same metric, so callers keep references rather than names.
class Metrics {
 public:
  // Registers llava_build_info{service,version,commit} = 1.
  explicit Metrics(const std::string& service);

  prometheus::Counter& Counter(const std::string& name, const std::string& help,
                               const MetricLabels& labels = {});
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help,
                           const MetricLabels& labels = {});
  prometheus::Histogram& Histogram(const std::string& name, const std::string& help,
                                   const MetricLabels& labels = {},
                                   const std::vector<double>& buckets = LatencyBuckets());

  // The gauge of these labels is shown no more, and references to it are void. Nothing happens if
  // there is none.
  void RemoveGauge(const std::string& name, const MetricLabels& labels);

  // Text exposition format 0.0.4.
  std::string Render() const;

 private:
  prometheus::Registry registry_;
};

}  // namespace llava
