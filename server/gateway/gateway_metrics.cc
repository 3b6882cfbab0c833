#include "server/gateway/gateway_metrics.h"

#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"
#include "server/gateway/call_fault.h"

namespace llava {
namespace {

constexpr char kFeatureCache[] = "llava_gateway_feature_cache_total";
constexpr char kFeatureCacheHelp[] =
    "Pictures of prompts whose features the LLM service was believed to hold (hit) or not (miss).";

}  // namespace

std::string FinishReasonLabel(v1::FinishReason reason) {
  const std::string name = v1::FinishReason_Name(reason);
  return absl::AsciiStrToLower(absl::StripPrefix(name, "FINISH_REASON_"));
}

GatewayMetrics::GatewayMetrics(Metrics& metrics)
    : metrics_(metrics),
      sessions(metrics.Gauge("llava_gateway_sessions", "Sessions in the store.")),
      turns_running(metrics.Gauge("llava_gateway_turns_running", "Answers under way.")),
      turns_taken_up_total(
          metrics.Counter("llava_gateway_turns_taken_up_total",
                          "Answers of an earlier process that were gone on with.")),
      worker_deaths_total(metrics.Counter("llava_gateway_worker_deaths_total",
                                          "Answers that lost their language worker.")),
      time_to_first_token_seconds(
          metrics.Histogram("llava_gateway_time_to_first_token_seconds",
                            "From receipt of a question to the first text of its answer.")),
      time_between_tokens_seconds(metrics.Histogram("llava_gateway_time_between_tokens_seconds",
                                                    "Between two pieces of text of an answer.")),
      turn_duration_seconds(metrics.Histogram("llava_gateway_turn_duration_seconds",
                                              "From receipt of a question to its end.")),
      feature_cache_hits(metrics.Counter(kFeatureCache, kFeatureCacheHelp, {{"result", "hit"}})),
      feature_cache_misses(metrics.Counter(kFeatureCache, kFeatureCacheHelp, {{"result", "miss"}})),
      image_bytes_total(metrics.Counter("llava_gateway_image_bytes_total",
                                        "Bytes of pictures received and accepted.")),
      store_queue(metrics.Gauge("llava_gateway_store_queue",
                                "Requests waiting for the store, or under way in it.")),
      store_commit_seconds(metrics.Histogram("llava_gateway_store_commit_seconds",
                                             "Transactions that wrote, sync included.")),
      store_failures_total(
          metrics.Counter("llava_gateway_store_failures_total",
                          "What store and journal could not read or write, as on a full disk.")),
      journal_bytes_total(metrics.Counter("llava_gateway_journal_bytes_total",
                                          "Bytes written to the journal of running answers.")),
      journal_write_seconds(metrics.Histogram("llava_gateway_journal_write_seconds",
                                              "Writes of the journal, each over all answers.")),
      turns_given_up_total(
          metrics.Counter("llava_gateway_turns_given_up_total",
                          "Answers over which too many processes of the gateway died.")) {
  // Rates want a zero before the first one.
  for (const char* question : {"Chat", "RegenerateTurn", "chat.completions"}) {
    Faults(question);
    RequestSeconds(question);
  }
  for (const char* backend : {"vision", "llm"}) Ejections(backend);
}

void GatewayMetrics::CountRequest(const std::string& method, const absl::Status& status,
                                  double seconds) {
  metrics_
      .Counter("llava_gateway_requests_total", "Calls that ended.",
               {{"method", method}, {"code", absl::StatusCodeToString(status.code())}})
      .Increment();
  if (IsFault(status)) Faults(method).Increment();
  RequestSeconds(method).Observe(seconds);
}

prometheus::Counter& GatewayMetrics::Faults(const std::string& method) {
  return metrics_.Counter("llava_gateway_request_faults_total",
                          "Calls that failed by a fault that their callers cannot mend.",
                          {{"method", method}});
}

prometheus::Histogram& GatewayMetrics::RequestSeconds(const std::string& method) {
  return metrics_.Histogram("llava_gateway_request_duration_seconds",
                            "Length of calls, streams included.", {{"method", method}});
}

void GatewayMetrics::CountTurn(v1::FinishReason reason, double seconds) {
  metrics_
      .Counter("llava_gateway_turns_total", "Answers that ended.",
               {{"finish_reason", FinishReasonLabel(reason)}})
      .Increment();
  turn_duration_seconds.Observe(seconds);
}

void GatewayMetrics::CountTokens(const v1::Usage& usage) {
  const auto count = [this](const std::string& kind, uint32_t tokens) {
    metrics_
        .Counter("llava_gateway_tokens_total", "Tokens of prompts and answers.", {{"kind", kind}})
        .Increment(tokens);
  };
  count("text", usage.text_tokens());
  count("image", usage.image_tokens());
  count("generated", usage.generated_tokens());
}

void GatewayMetrics::CountImage(const std::string& result) {
  metrics_.Counter("llava_gateway_images_total", "Pictures received.", {{"result", result}})
      .Increment();
}

void GatewayMetrics::CountPictureFetch(const std::string& result) {
  metrics_
      .Counter("llava_gateway_picture_fetches_total", "Pictures that requests named by URL.",
               {{"result", result}})
      .Increment();
}

void GatewayMetrics::CountWarmup(bool ok) {
  metrics_
      .Counter("llava_gateway_pictures_encoded_ahead_total",
               "Uploaded pictures that were encoded before a question came.",
               {{"result", ok ? "ok" : "failed"}})
      .Increment();
}

void GatewayMetrics::CountBackendError(const std::string& backend, absl::StatusCode code) {
  metrics_
      .Counter("llava_gateway_backend_errors_total", "Calls that a service behind failed.",
               {{"backend", backend}, {"code", absl::StatusCodeToString(code)}})
      .Increment();
}

void GatewayMetrics::SetBackends(const std::string& backend, int up, int down) {
  metrics_
      .Gauge("llava_gateway_backend_up", "1 while a process of the service behind answers.",
             {{"backend", backend}})
      .Set(up > 0 ? 1 : 0);
  metrics_
      .Gauge("llava_gateway_backends_down", "Processes of the service behind that do not answer.",
             {{"backend", backend}})
      .Set(down);
}

prometheus::Counter& GatewayMetrics::Ejections(const std::string& backend) {
  return metrics_.Counter(
      "llava_gateway_backend_ejections_total",
      "Times that a process of the service behind was left out because its calls failed.",
      {{"backend", backend}});
}

void GatewayMetrics::CountEjection(const std::string& backend) { Ejections(backend).Increment(); }

void GatewayMetrics::SetRolloutActive(const std::string& model, bool active, double canary_share) {
  metrics_
      .Gauge("llava_gateway_rollout_active", "1 while a canary of the model is watched.",
             {{"model", model}})
      .Set(active ? 1 : 0);
  metrics_
      .Gauge("llava_gateway_rollout_canary_share",
             "Share of the sessions that a canary of the model gets now.", {{"model", model}})
      .Set(canary_share);
}

void GatewayMetrics::SetRollout(const std::string& model, const std::string& role,
                                const VersionEvidence& evidence) {
  const auto set = [&](const std::string& what, const std::string& help, double value) {
    metrics_.Gauge("llava_gateway_rollout_" + what, help, {{"model", model}, {"role", role}})
        .Set(value);
  };
  set("turns", "Turns of a version that count for the verdict.",
      static_cast<double>(evidence.turns));
  set("failed_turns", "Those of them that a fault of the version ended.",
      static_cast<double>(evidence.failed));
  set("first_token_seconds", "Nine tenths of the turns had their first text sooner.",
      Quantile(evidence.first_token, 0.9));
  set("between_tokens_seconds", "Nine tenths of the turns had shorter times between texts.",
      Quantile(evidence.between_tokens, 0.9));
  set("largest_gap_seconds", "Longest time between two pieces of text.", evidence.largest_gap);
  set("self_test_drift", "Largest deviation from the self-test; negative: none.", evidence.drift);
  set("nan_outputs", "Answers that failed for values that are no numbers.",
      static_cast<double>(evidence.nan_outputs));
}

void GatewayMetrics::SetRolloutVerdict(const std::string& model, RolloutVerdict verdict) {
  metrics_
      .Gauge("llava_gateway_rollout_verdict",
             "What is thought of the canary: 0 undecided, 1 as good, 2 worse.", {{"model", model}})
      .Set(static_cast<double>(verdict));
}

void GatewayMetrics::SetRolloutPending(const std::string& model, bool pending) {
  metrics_
      .Gauge("llava_gateway_rollout_pending",
             "1 while a verdict could not be carried out at all services.", {{"model", model}})
      .Set(pending ? 1 : 0);
}

prometheus::Counter& GatewayMetrics::Rollouts(const std::string& model, bool promoted) {
  return metrics_.Counter("llava_gateway_rollouts_total", "Rollouts that the gateway ended.",
                          {{"model", model}, {"result", promoted ? "promoted" : "rolled_back"}});
}

void GatewayMetrics::ShowRollouts(const std::string& model) {
  for (const bool promoted : {true, false}) Rollouts(model, promoted);
}

void GatewayMetrics::CountRollout(const std::string& model, bool promoted) {
  Rollouts(model, promoted).Increment();
}

}  // namespace llava
