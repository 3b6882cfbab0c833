#pragma once

#include "llava/v1/types.pb.h"
#include "server/lifecycle/lifecycle_options.h"
#include "server/llm/engine.h"
#include "server/llm/llm_servable.h"
#include "server/llm/llm_service.h"
#include "server/llm/model_runner.h"
#include "server/runtime/service_process.h"
#include "server/runtime/settings.h"

namespace llava {

// Everything llava-llm can be told.
struct LlmOptions {
  ProcessOptions process;
  LifecycleOptions lifecycle;
  LanguageOptions language;  // `model` is set by who loads a version
  LlmEngine::Options engine;
  LlmService::Options service;
  uint64_t feature_store_bytes = uint64_t{1} << 30;
  int context_tokens = 0;
  // Used where neither request nor session say otherwise: those of LLaVA's published demo.
  double default_temperature = 0.2;
  double default_top_p = 0.7;
  int default_max_new_tokens = 512;

  LlmOptions();
  void Declare(Settings& settings);
  v1::SamplingParams DefaultSampling() const;
  // `managed`: which versions will be loaded, with a memory_budget of the GPUs where there are.
  LlmServableLoader::Options ForLoader(const ModelManager::Options& managed) const;
};

}  // namespace llava
