#pragma once

#include "llava/v1/llm.grpc.pb.h"
#include "llava/v1/vision.grpc.pb.h"
#include "server/gateway/answer_journal.h"
#include "server/gateway/backend.h"
#include "server/gateway/conversation_store.h"
#include "server/gateway/feature_index.h"
#include "server/gateway/gateway_metrics.h"
#include "server/gateway/gateway_options.h"
#include "server/gateway/model_router.h"
#include "server/gateway/running_turns.h"
#include "server/runtime/service_process.h"

namespace llava {

// What all turns share. Everything is thread-safe and outlives every turn.
struct TurnParts {
  const GatewayOptions& options;
  GatewayMetrics& metrics;
  Admission& admission;
  ConversationStore& store;
  AnswerJournal& journal;
  Backend& vision;
  Backend& llm;
  v1::VisionService::Stub& encoder;
  v1::LlmService::Stub& generator;
  v1::LlmService::Stub& receiver;  // for features, over the bulk channel
  ModelRouter& router;
  FeatureIndex& features;
  RunningTurns& running;
};

}  // namespace llava
