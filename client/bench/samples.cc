#include "client/bench/samples.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace llava::bench {

void Samples::Fail(const absl::Status& status) {
  Failures& failures = this->failures[absl::StatusCodeToString(status.code())];
  if (failures.count++ == 0) failures.first_message = std::string(status.message());
}

uint64_t Samples::failed() const {
  uint64_t count = 0;
  for (const auto& [code, failures] : this->failures) count += failures.count;
  return count;
}

Distribution Describe(std::vector<double> values) {
  Distribution result;
  if (values.empty()) return result;
  std::sort(values.begin(), values.end());
  const auto count = static_cast<double>(values.size());
  const auto at = [&](double share) {
    const auto rank = static_cast<size_t>(std::max(1.0, std::ceil(share * count)));
    return values[std::min(rank, values.size()) - 1];
  };
  result.count = values.size();
  result.mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  result.median = at(0.5);
  result.p90 = at(0.9);
  result.p99 = at(0.99);
  result.max = values.back();
  return result;
}

}  // namespace llava::bench
