#pragma once

#include "server/gateway/answer_journal.h"
#include "server/gateway/api_keys.h"
#include "server/gateway/conversation_store.h"
#include "server/gateway/gateway_metrics.h"
#include "server/gateway/gateway_options.h"
#include "server/gateway/model_router.h"
#include "server/gateway/recovery_lane.h"
#include "server/gateway/request_memory.h"
#include "server/gateway/rollout_evidence.h"
#include "server/gateway/running_turns.h"
#include "server/gateway/session_owners.h"
#include "server/gateway/transfer_memory.h"
#include "server/gateway/turn_gate.h"
#include "server/runtime/service_process.h"

namespace llava {

class FeatureDrops;
class KeyLanes;
class ModelAdmin;
class PictureFetcher;
class PictureWarmup;
class ResumableCalls;
class RolloutGuard;
class SendWatch;
class StoppableCalls;

// What all services and their calls share. Everything is thread-safe and outlives them.
struct TurnParts {
  const GatewayOptions& options;
  GatewayMetrics& metrics;
  Admission& admission;
  ConversationStore& store;
  AnswerJournal& journal;
  FeatureDrops& drops;
  ModelRouter& router;
  RunningTurns& running;
  PictureWarmup& warmup;
  const ApiKeys& keys;
  SessionOwners& owners;
  TurnGate& gate;
  TurnSamples& samples;
  ModelAdmin& admin;
  StoppableCalls& counts;  // of tokens, without a turn
  KeyLanes& calls;         // that look at sessions
  KeyLanes& pages;         // of sessions and turns, until they are sent
  SendWatch& sends;
  RolloutGuard& rollouts;
  ResumableCalls& resumable;
  PictureFetcher& fetcher;
  RecoveryLane& recovery;
  RequestMemory& memory;
  TransferMemory& transfers;
};

}  // namespace llava
