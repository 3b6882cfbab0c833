#pragma once

#include "llava/v1/llm.grpc.pb.h"
#include "llava/v1/vision.grpc.pb.h"
#include "server/gateway/api_keys.h"
#include "server/gateway/backend.h"
#include "server/gateway/feature_index.h"
#include "server/gateway/gateway_metrics.h"
#include "server/gateway/gateway_options.h"
#include "server/gateway/model_router.h"
#include "server/gateway/running_turns.h"
#include "server/gateway/session_owners.h"
#include "server/gateway/session_store.h"
#include "server/gateway/turn_gate.h"

namespace llava {

// What all turns share. Everything is thread-safe and outlives every turn.
struct TurnParts {
  const GatewayOptions& options;
  GatewayMetrics& metrics;
  SessionStore& store;
  Backend& vision;
  Backend& llm;
  v1::VisionService::Stub& encoder;
  v1::LlmService::Stub& generator;
  v1::LlmService::Stub& receiver;  // for features, over the bulk channel
  ModelRouter& router;
  FeatureIndex& features;
  RunningTurns& running;
  const ApiKeys& keys;
  SessionOwners& owners;
  TurnGate& gate;
};

}  // namespace llava
