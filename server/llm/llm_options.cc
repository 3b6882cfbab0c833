#include "server/llm/llm_options.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "server/device/device.h"
#include "server/wire/sampling.h"

namespace llava {
namespace {

// Left to a vision service on the same GPU, which may come later (ViT-L/14-336 takes less).
constexpr uint64_t kVisionBytes = uint64_t{2} << 30;

}  // namespace

LlmOptions::LlmOptions() {
  process.port = 8021;
  process.metrics_port = 8022;
  engine.step_limit = std::chrono::minutes(5);
}

void LlmOptions::Declare(Settings& settings) {
  // By the device, where nobody says more.
  engine.max_running = 0;
  language.kv_bytes = 0;
  process.Declare(settings);
  settings.Group("Model");
  lifecycle.Declare(settings, Manifest::Kind::kLanguage);
  settings.Add("tower", &language.tower,
               "Folder of the vision tower, if the checkpoint names one that is not there");
  settings.Add("chat-template", &language.chat_template,
               "Name or JSON file of a chat template; empty: the checkpoint's own");
  settings.Add("device", &language.device, "cpu, cuda:N, or several with commas; one worker each");
  settings.AddChoice(
      "dtype", &language.dtype,
      "Weights of the decoder; auto = as packed, else bfloat16, but float32 for small models on "
      "cpu. float16: on cuda, and slow: it has no kernels of its own",
      {"auto", "float32", "bfloat16", "float16", "int8", "int4"});
  settings.Add("group", &language.group,
               "int8 and int4 weights with a common scale: 32, 64 or 128; 0 = as packed, else 128 "
               "of int8 and 64 of int4",
               0, 128);
  settings.AddChoice("kv-type", &language.kv_type,
                     "Keys and values; auto = float32 for float32 weights, else 16 bits",
                     {"auto", "float32", "bfloat16", "int8"});
  settings.Add("context-tokens", &context_tokens,
               "Longest prompt plus answer; 0 or more than the model's: the model's own", 0,
               1 << 30);
  settings.Group("Work");
  settings.Add("threads", &language.threads,
               "Threads inside a worker's operations, 0 = cores/workers, or 1 for a small model", 0,
               1024);
  settings.Add("prompt-threads", &service.prompt_threads, "Threads that render and tokenize", 1,
               256);
  settings.Add("max-running", &engine.max_running,
               "Most answers in the making per worker; 0 = 32, on GPUs 64", 0, 4096);
  settings.Add("prefill-chunk", &engine.prefill_chunk, "Most prompt tokens computed in one step", 1,
               1 << 20);
  settings.Add("prefill-slowdown", &engine.prefill_slowdown,
               "How many times as long as usual a step may take because of prompts, while answers "
               "are running: smaller keeps them flowing, larger computes prompts faster",
               1.1, 1000);
  settings.Add("step-limit", &engine.step_limit,
               "A worker that hangs in a step for longer is given up: its answers end with "
               "UNAVAILABLE, another takes its place, but a GPU is lost to the process (exit code "
               "7); 0s = never");
  settings.Group("Limits");
  settings.Add("queue", &engine.queue, "Most requests waiting; beyond it UNAVAILABLE", 1,
               1'000'000);
  settings.AddBytes("kv-bytes", &language.kv_bytes,
                    "Keys and values per worker; 0 = 4G, on GPUs what lets the next version of a "
                    "model be loaded beside this one");
  settings.AddBytes("feature-store-bytes", &feature_store_bytes, "Picture features kept");
  settings.Group("Defaults of sampling");
  settings.Add("default-temperature", &default_temperature, "0 = greedy", 0, 2);
  settings.Add("default-top-p", &default_top_p, "Nucleus sampling", 0.0001, 1);
  settings.Add("default-max-new-tokens", &default_max_new_tokens, "Limit of generated tokens", 1,
               1 << 30);
  settings.Check([this]() -> absl::Status {
    service.queue = engine.queue;
    engine.load_limit = LoadLimit(engine.step_limit);
    if (const int group = language.group;
        group != 0 && group != 32 && group != 64 && group != 128) {
      return absl::InvalidArgumentError(
          absl::StrCat("--group: there are groups of 32, 64 and 128 weights, not of ", group));
    }
    const auto devices = ParseDevices(language.device);
    if (!devices.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--device: ", std::string(devices.status().message())));
    }
    if (engine.max_running == 0) engine.max_running = devices->front().is_cpu() ? 32 : 64;
    return CheckSampling(DefaultSampling());
  });
}

LlmServableLoader::Options LlmOptions::ForLoader(const ModelManager::Options& managed) const {
  LlmServableLoader::Options loader;
  loader.language = language;
  const auto devices = ParseDevices(language.device);
  const size_t models = managed.fixed ? 1 : managed.names.size();
  if (devices.ok() && devices->front().is_cuda() && models > 0) {
    const uint64_t each = managed.memory_budget / devices->size();
    loader.device_bytes = (each - std::min(each, kVisionBytes)) / models;
    loader.most_versions = managed.most_versions();
    loader.served_versions = managed.served_versions();
  } else if (language.kv_bytes == 0) {
    loader.language.kv_bytes = LanguageOptions().kv_bytes;
  }
  loader.engine = engine;
  loader.context_tokens = context_tokens;
  loader.defaults = DefaultSampling();
  loader.prewarm = lifecycle.swap_prewarm;
  return loader;
}

v1::SamplingParams LlmOptions::DefaultSampling() const {
  v1::SamplingParams params;
  params.set_temperature(static_cast<float>(default_temperature));
  params.set_top_p(static_cast<float>(default_top_p));
  params.set_max_new_tokens(static_cast<uint32_t>(default_max_new_tokens));
  return params;
}

}  // namespace llava
