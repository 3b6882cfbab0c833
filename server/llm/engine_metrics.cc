#include "server/llm/engine_metrics.h"

namespace llava {
namespace {

const std::vector<double>& TokenBuckets() {
  static const std::vector<double> buckets = {1,   2,   4,   8,    16,   32,  64,
                                              128, 256, 512, 1024, 2048, 4096};
  return buckets;
}

const std::vector<double>& MaskBuckets() {
  static const std::vector<double> buckets = {5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4,
                                              5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2};
  return buckets;
}

prometheus::Counter& PromptTokens(Metrics& metrics, const std::string& kind) {
  return metrics.Counter("llava_llm_prompt_tokens_total", "Prompt tokens of requests that ran",
                         {{"kind", kind}});
}

prometheus::Gauge& WorkersGauge(Metrics& metrics, const std::string& state) {
  return metrics.Gauge("llava_llm_workers", "Workers by state", {{"state", state}});
}

}  // namespace

const char* ToString(AnswerEnd end) {
  switch (end) {
    case AnswerEnd::kStop:
      return "stop";
    case AnswerEnd::kLength:
      return "length";
    case AnswerEnd::kContext:
      return "context";
    case AnswerEnd::kDeadline:
      return "deadline";
  }
  return "unknown";
}

EngineMetrics::EngineMetrics(Metrics& m)
    : registry(m),
      requests_running(m.Gauge("llava_llm_requests_running", "Answers in the making")),
      requests_waiting(m.Gauge("llava_llm_requests_waiting", "Requests waiting to join a batch")),
      queue_seconds(m.Histogram("llava_llm_queue_seconds", "From receipt to joining a batch")),
      time_to_first_token_seconds(
          m.Histogram("llava_llm_time_to_first_token_seconds", "From receipt to the first token")),
      time_between_tokens_seconds(
          m.Histogram("llava_llm_time_between_tokens_seconds", "Between two tokens of one answer")),
      prefill_seconds(
          m.Histogram("llava_llm_prefill_seconds", "From joining a batch to the first token")),
      request_duration_seconds(
          m.Histogram("llava_llm_request_duration_seconds", "From receipt to the end")),
      text_tokens(PromptTokens(m, "text")),
      image_tokens(PromptTokens(m, "image")),
      generated_tokens(m.Counter("llava_llm_generated_tokens_total", "Tokens sampled")),
      batch_tokens(
          m.Histogram("llava_llm_batch_tokens", "Tokens computed in one step", {}, TokenBuckets())),
      step_seconds(
          m.Histogram("llava_llm_step_seconds", "One step of a worker: forward, sampling")),
      cached_tokens(m.Counter("llava_llm_cached_tokens_total",
                              "Prompt tokens whose keys and values were there already")),
      preemptions(m.Counter("llava_llm_preemptions_total",
                            "Answers that gave their keys and values back to others")),
      respawns(m.Counter("llava_llm_worker_respawns_total", "Dead workers that began anew")),
      kv_used_bytes(m.Gauge("llava_llm_kv_bytes", "Keys and values that running answers use")),
      kv_idle_bytes(
          m.Gauge("llava_llm_kv_cached_bytes", "Keys and values kept in case they are needed")),
      kv_total_bytes(m.Gauge("llava_llm_kv_capacity_bytes", "Room for keys and values")),
      kv_evicted_blocks(m.Counter("llava_llm_kv_evicted_blocks_total",
                                  "Cached blocks that made room for others")),
      kv_copied_bytes(m.Counter("llava_llm_kv_copied_bytes_total",
                                "Keys and values copied because a prompt parts within a block")),
      nan_logits(m.Counter("llava_llm_nan_logits_total",
                           "Answers ended because their logits were not finite")),
      mask_seconds(m.Histogram("llava_llm_mask_seconds",
                               "Finding the tokens that a constraint allows next", {},
                               MaskBuckets())) {
  for (const char* reason : {"stop", "length", "context", "deadline", "cancelled", "error"}) {
    FinishedBy(reason);  // a series of zero can be alerted on
  }
}

EngineMetrics::~EngineMetrics() {
  ShowWorkers(0, 0, 0);
  ShowWaiting(0);
}

void EngineMetrics::ShowWorkers(int loading, int ready, int failed) {
  WorkersGauge(registry, "loading").Increment(loading - workers_.loading);
  WorkersGauge(registry, "ready").Increment(ready - workers_.ready);
  WorkersGauge(registry, "failed").Increment(failed - workers_.failed);
  workers_ = {loading, ready, failed};
}

void EngineMetrics::ShowWaiting(size_t waiting) {
  requests_waiting.Increment(static_cast<double>(waiting) - static_cast<double>(waiting_));
  waiting_ = waiting;
}

prometheus::Counter& EngineMetrics::FinishedBy(const std::string& reason) {
  return registry.Counter("llava_llm_finished_total",
                          "Answers that began to run, by how they ended", {{"reason", reason}});
}

}  // namespace llava
