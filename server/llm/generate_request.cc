#include "server/llm/generate_request.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/runtime/status.h"
#include "server/wire/constraint.h"
#include "server/wire/feature_key.h"
#include "server/wire/sampling.h"

namespace llava {
namespace {

// A seed nobody asked for: the gateway draws one that it can repeat, direct callers get this.
uint64_t DrawSeed() {
  thread_local std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

SamplingOptions ToOptions(const v1::SamplingParams& params) {
  SamplingOptions options;
  options.temperature = params.temperature();
  if (params.has_top_p()) options.top_p = params.top_p();
  options.top_k = params.top_k();
  options.min_p = params.min_p();
  if (params.has_repetition_penalty()) options.repetition_penalty = params.repetition_penalty();
  options.presence_penalty = params.presence_penalty();
  options.frequency_penalty = params.frequency_penalty();
  options.seed = params.has_seed() ? params.seed() : DrawSeed();
  return options;
}

using FoundFeatures = std::vector<std::shared_ptr<const StoredFeatures>>;

// Of each picture.
absl::StatusOr<FoundFeatures> FindFeatures(const Prompt& prompt, FeatureStore& store) {
  FoundFeatures found;
  v1::MissingFeatures missing;
  for (const v1::FeatureKey& key : prompt.images) {
    found.push_back(store.Get(FeatureKeyToBytes(key)));
    if (!found.back()) *missing.add_keys() = key;
  }
  if (missing.keys().empty()) return found;
  absl::Status status = absl::FailedPreconditionError(
      absl::StrCat("features of ", missing.keys_size(), " of ", prompt.images.size(),
                   " pictures are not here, the first is ", FeatureKeyName(missing.keys(0)),
                   "; send them by PutFeatures and ask again"));
  AddDetail(status, missing);
  return status;
}

absl::Status Resume(const v1::ContinueFrom& from, const LlmBackend& backend, GenerateJob& job) {
  if (from.tokens().ids_size() > static_cast<int64_t>(backend.info.context_tokens())) {
    return absl::InvalidArgumentError(absl::StrCat("continue_from has ", from.tokens().ids_size(),
                                                   " tokens, more than the context of ",
                                                   backend.info.context_tokens()));
  }
  if (!from.tokens().ids().empty() &&
      from.tokens().tokenizer_digest() != backend.info.tokenizer_digest()) {
    return absl::FailedPreconditionError(
        "continue_from.tokens are of another tokenizer: only the version that began an answer can "
        "go on with it");
  }
  auto ids = backend.prompts.OwnIds(from.tokens(), "continue_from.tokens");
  if (!ids.ok()) return ids.status();
  job.resumed_ids = *std::move(ids);
  job.resumed_text_bytes = from.text_bytes_emitted();
  return absl::OkStatus();
}

// Where the answer is under the constraint, behind what was resumed.
absl::Status Constrain(const v1::OutputConstraint& constraint, const LlmBackend& backend,
                       GenerateJob& job) {
  const auto compiled = backend.engine.constraints().Get(
      constraint.SerializeAsString(), [&] { return CompileConstraint(constraint); });
  if (!compiled.ok()) return compiled.status();
  job.matcher = std::make_unique<grammar::Matcher>(*compiled);
  for (const int32_t id : job.resumed_ids) {
    if (job.matcher->Advance(id)) continue;
    return absl::InvalidArgumentError(
        "continue_from.tokens are not the beginning of an answer under "
        "SamplingParams.constraint");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckGenerate(const v1::GenerateRequest& request) {
  if (!request.adapter_id().empty()) return UnimplementedField("GenerateRequest.adapter_id");
  return CheckSampling(request.sampling());
}

absl::StatusOr<Prompt> CountPrompt(
    const google::protobuf::RepeatedPtrField<v1::PromptMessage>& messages,
    const LlmBackend& backend) {
  absl::StatusOr<Prompt> prompt = backend.prompts.Build(messages);
  if (!prompt.ok() || !backend.prompts.sizes_matter()) return prompt;
  const auto features = FindFeatures(*prompt, backend.store);
  if (!features.ok()) return features.status();
  backend.prompts.CountPictures(*features, *prompt);
  return prompt;
}

absl::StatusOr<GenerateJob> MakeJob(const v1::GenerateRequest& request, const LlmBackend& backend) {
  absl::StatusOr<Prompt> prompt = backend.prompts.Build(request.messages());
  if (!prompt.ok()) return prompt.status();
  if (auto status = backend.prompts.CheckFits(*prompt); !status.ok()) return status;

  GenerateJob job;
  job.context_tokens = backend.info.context_tokens();
  const LanguageInfo& language = backend.engine.info();
  const v1::SamplingParams params =
      WithDefaults(request.sampling(), backend.info.default_sampling());
  job.sampling = ToOptions(params);
  if (params.has_logprobs()) job.logprobs = params.logprobs();
  job.stop.ignore_eos = params.ignore_eos();
  // An answer under a constraint has an end of its own, and the template's may be part of it.
  const bool constrained = HasConstraint(params);
  if (!constrained) job.stop.stop = language.chat_template->stop();
  if (const int32_t eos = language.tokenizer->eos_id(); params.ignore_eos() && eos >= 0) {
    // Whichever way it is named.
    std::erase_if(job.stop.stop,
                  [&](const std::string& stop) { return language.tokenizer->IdOf(stop) == eos; });
  }
  job.stop.stop.insert(job.stop.stop.end(), params.stop().begin(), params.stop().end());
  job.stop.stop_token_ids.assign(params.stop_token_ids().begin(), params.stop_token_ids().end());
  for (const int32_t id : job.stop.stop_token_ids) {
    if (id >= 0 && id < language.tokenizer->vocab_size()) continue;
    return absl::InvalidArgumentError(absl::StrCat("SamplingParams.stop_token_ids: id ", id,
                                                   " is out of range, the tokenizer has ",
                                                   language.tokenizer->vocab_size(), " ids"));
  }
  if (request.has_continue_from()) {
    if (auto status = Resume(request.continue_from(), backend, job); !status.ok()) return status;
  }
  if (constrained) {
    // With what the defaults add.
    if (auto status = CheckSampling(params); !status.ok()) return status;
    if (auto status = Constrain(params.constraint(), backend, job); !status.ok()) return status;
  }
  auto features = FindFeatures(*prompt, backend.store);
  if (!features.ok()) return features.status();
  job.features = *std::move(features);
  for (const v1::FeatureKey& key : prompt->images) {
    job.feature_keys.push_back(FeatureKeyToBytes(key));
  }
  if (backend.prompts.sizes_matter()) {
    backend.prompts.CountPictures(job.features, *prompt);
    if (auto status = backend.prompts.CheckFits(*prompt); !status.ok()) return status;
  }
  const auto room = static_cast<uint64_t>(job.context_tokens - prompt->tokens());
  job.stop.max_new_tokens =
      static_cast<uint32_t>(std::min<uint64_t>(params.max_new_tokens(), room));
  job.context_bound = params.max_new_tokens() > room;
  job.text_tokens = prompt->text_tokens;
  job.image_tokens = prompt->image_tokens;
  job.picture_tokens = std::move(prompt->picture_tokens);
  job.ids = std::move(prompt->ids);
  job.cache_salt = request.cache_salt();
  job.place = {
      .tenant = request.tenant(), .weight = request.weight(), .priority = request.priority()};
  return job;
}

}  // namespace llava
