#pragma once

#include <cstddef>
#include <string>

#include "server/llm/sequence.h"
#include "server/runtime/metrics.h"

namespace llava {

// "stop", "length", "context", "deadline".
const char* ToString(AnswerEnd end);

// What an engine counts. The series are those of the process: gauges are sums over its engines.
// Thread-safe but for the two Show, whose calls come one after the other.
struct EngineMetrics {
  explicit EngineMetrics(Metrics& metrics);
  // Takes what this engine has shown out of the sums.
  ~EngineMetrics();

  void ShowWorkers(int loading, int ready, int failed);
  void ShowWaiting(size_t waiting);
  // `reason`: of an AnswerEnd, "cancelled" or "error".
  prometheus::Counter& FinishedBy(const std::string& reason);

  Metrics& registry;
  prometheus::Gauge& requests_running;
  prometheus::Gauge& requests_waiting;
  prometheus::Histogram& queue_seconds;
  prometheus::Histogram& time_to_first_token_seconds;
  prometheus::Histogram& time_between_tokens_seconds;
  prometheus::Histogram& prefill_seconds;
  prometheus::Histogram& request_duration_seconds;
  prometheus::Counter& text_tokens;
  prometheus::Counter& image_tokens;
  prometheus::Counter& generated_tokens;
  prometheus::Histogram& batch_tokens;
  prometheus::Histogram& step_seconds;
  prometheus::Counter& cached_tokens;
  prometheus::Counter& preemptions;
  prometheus::Counter& respawns;
  prometheus::Gauge& kv_used_bytes;
  prometheus::Gauge& kv_idle_bytes;
  prometheus::Gauge& kv_total_bytes;
  prometheus::Counter& kv_evicted_blocks;
  prometheus::Counter& kv_copied_bytes;
  prometheus::Counter& nan_logits;
  prometheus::Histogram& mask_seconds;

 private:
  struct Workers {
    int loading = 0, ready = 0, failed = 0;
  };
  Workers workers_;
  size_t waiting_ = 0;
};

}  // namespace llava
