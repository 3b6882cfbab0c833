#pragma once

// What a gateway counts. Prefix llava_gateway_.

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "llava/v1/types.pb.h"
#include "server/gateway/rollout_decision.h"
#include "server/runtime/metrics.h"

namespace llava {

// Thread-safe.
class GatewayMetrics {
 public:
  explicit GatewayMetrics(Metrics& metrics);

  // requests_total{method,code}, request_faults_total{method}, request_duration_seconds{method}
  void CountRequest(const std::string& method, const absl::Status& status, double seconds);
  // turns_total{finish_reason}, turn_duration_seconds
  void CountTurn(v1::FinishReason reason, double seconds);
  // tokens_total{kind}
  void CountTokens(const v1::Usage& usage);
  // images_total{result}: accepted, refused
  void CountImage(const std::string& result);
  // picture_fetches_total{result}: ok, refused (before a connection), failed
  void CountPictureFetch(const std::string& result);
  // pictures_encoded_ahead_total{result}: ok, failed
  void CountWarmup(bool ok);
  // backend_errors_total{backend,code}
  void CountBackendError(const std::string& backend, absl::StatusCode code);
  // backend_up{backend}: 1 while one of its processes answers; backends_down{backend}
  void SetBackends(const std::string& backend, int up, int down);
  // backend_ejections_total{backend}
  void CountEjection(const std::string& backend);
  // rollout_active{model}, rollout_canary_share{model}
  void SetRolloutActive(const std::string& model, bool active, double canary_share = 0);
  // rollout_turns, rollout_failed_turns, rollout_first_token_seconds,
  // rollout_between_tokens_seconds (nine tenths are faster), rollout_largest_gap_seconds,
  // rollout_self_test_drift, rollout_nan_outputs {model,role}
  void SetRollout(const std::string& model, const std::string& role,
                  const VersionEvidence& evidence);
  // rollout_verdict{model}: 0 undecided, 1 as good, 2 worse
  void SetRolloutVerdict(const std::string& model, RolloutVerdict verdict);
  // rollout_pending{model}
  void SetRolloutPending(const std::string& model, bool pending);
  // rollouts_total{model,result}: promoted, rolled_back. Shown at 0 from ShowRollouts on: the step
  // to a series that was not there before is no increase to Prometheus.
  void ShowRollouts(const std::string& model);
  void CountRollout(const std::string& model, bool promoted);

 private:
  prometheus::Counter& Faults(const std::string& method);
  prometheus::Histogram& RequestSeconds(const std::string& method);
  prometheus::Counter& Ejections(const std::string& backend);
  prometheus::Counter& Rollouts(const std::string& model, bool promoted);

  Metrics& metrics_;

 public:
  prometheus::Gauge& sessions;
  prometheus::Gauge& turns_running;
  prometheus::Counter& turns_taken_up_total;
  prometheus::Counter& worker_deaths_total;
  prometheus::Histogram& time_to_first_token_seconds;
  prometheus::Histogram& time_between_tokens_seconds;
  prometheus::Histogram& turn_duration_seconds;
  prometheus::Counter& feature_cache_hits;
  prometheus::Counter& feature_cache_misses;
  prometheus::Counter& image_bytes_total;
  prometheus::Gauge& store_queue;
  prometheus::Histogram& store_commit_seconds;
  prometheus::Counter& store_failures_total;
  prometheus::Counter& journal_bytes_total;
  prometheus::Histogram& journal_write_seconds;
  prometheus::Counter& turns_given_up_total;
};

// "stop", "length", "cancelled" ...
std::string FinishReasonLabel(v1::FinishReason reason);

}  // namespace llava
