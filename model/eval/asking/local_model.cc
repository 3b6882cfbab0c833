#include "model/eval/asking/local_model.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include <c10/core/InferenceMode.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/checkpoint_folder.h"
#include "model/checkpoint/durable_file.h"
#include "model/digest/sha256.h"
#include "model/image/decode.h"
#include "model/llava/generate.h"
#include "model/llava/llava.h"
#include "model/llava/tower_features.h"
#include "model/nn/clip.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

using Role = ChatMessage::Role;

// Tokens that an answer behind its reasons may take.
constexpr uint32_t kLongestChoice = 64;

Image ReadPicture(const std::filesystem::path& path) {
  const std::string bytes = ReadSmallFile(path, uint64_t{256} << 20);
  try {
    return DecodeImage({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  } catch (const std::invalid_argument& error) {
    throw std::runtime_error(path.string() + ": " + error.what());
  }
}

}  // namespace

std::string BeforeChoice(const std::string& reasons, const std::string& cue) {
  const std::string text(StripUtf8(reasons));
  return text.empty() ? cue : text + "\n" + cue;
}

struct LocalModel::Parts {
  Parts(const LanguageCheckpoint& language, const TowerCheckpoint& vision)
      : features(language.config.features),
        tower(vision.config, vision.tensors, at::kCPU, at::kFloat),
        model(language, at::kCPU, at::kFloat),
        digest(ToHex(language.digest) + ToHex(vision.digest)) {}

  FeatureConfig features;
  ClipTower tower;
  Llava model;
  std::string digest;
};

LocalModel::LocalModel(const std::filesystem::path& model, const std::filesystem::path& tower,
                       const std::string& chat_template) {
  const Layout layout = OpenCheckpointFolder(model, /*verify=*/false).layout;
  if (layout == Layout::kRepository && tower.empty()) {
    throw std::invalid_argument(model.string() +
                                " is a repository version: name the tower it belongs to");
  }
  // The original layout needs settings of a tower, and may have its weights.
  OpenOptions options;
  if (layout == Layout::kOriginal) options.tower = tower;
  const TowerCheckpoint vision =
      layout == Layout::kRepository ? OpenTower(tower) : OpenTower(model, options);
  options.chat_template = chat_template;
  const LanguageCheckpoint language = OpenLanguage(model, options);
  if (language.tower_digest != vision.digest) {
    throw std::invalid_argument(model.string() + " was trained with the tower " +
                                ToHex(language.tower_digest) + "; " + tower.string() + " is " +
                                ToHex(vision.digest));
  }
  parts_ = std::make_unique<const Parts>(language, vision);
}

LocalModel::~LocalModel() = default;

std::vector<PromptSpan> LocalModel::PromptOf(const VisualQuestion& question) const {
  std::vector<ChatMessage> messages;
  std::optional<std::string> system;
  for (const ChatRequest::Message& message : question.messages) {
    if (message.role == "system") {
      system = message.text;
    } else {
      messages.push_back(
          {message.role == "user" ? Role::kUser : Role::kAssistant, message.text, 0, {}});
    }
  }
  if (question.messages.empty()) {
    messages.push_back({Role::kUser, question.text, question.picture.empty() ? 0 : 1, {}});
  }
  return parts_->model.chat_template().Render(messages, system);
}

std::string LocalModel::KeyOf(const VisualQuestion& question, uint32_t max_tokens,
                              const SamplingOptions& sampling) const {
  nlohmann::json key = {parts_->digest, question.answer_cue, max_tokens};
  for (const std::string& stop : parts_->model.chat_template().stop()) key.push_back(stop);
  std::vector<PromptSpan> spans = PromptOf(question);
  if (!question.answer_cue.empty()) {
    parts_->model.chat_template().BeginAnswer(spans, question.answer_cue);
    key.push_back(BeforeChoice("", question.answer_cue));
  }
  for (const PromptSpan& span : spans) {
    key.push_back({static_cast<int>(span.kind), span.text, span.tokens});
  }
  if (!question.picture.empty()) key.push_back(ToHex(HashFile(question.picture.string())));
  if (sampling.temperature > 0) {
    key.push_back({sampling.temperature, sampling.top_p, sampling.seed});
  }
  return ToHex(HashBytes(key.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
}

LocalModel::Answered LocalModel::Answer(const VisualQuestion& question, uint32_t max_tokens,
                                        const SamplingOptions& sampling) const {
  const c10::InferenceMode guard;
  const Llava& model = parts_->model;
  std::vector<at::Tensor> features;
  std::vector<Resolution> sizes;
  if (!question.picture.empty()) {
    PictureFeatures picture =
        TowerFeatures(parts_->tower, parts_->features, ReadPicture(question.picture));
    features.push_back(std::move(picture.rows));
    sizes.push_back(picture.size);
  }
  std::vector<PromptSpan> spans = PromptOf(question);
  StopOptions stop;
  stop.max_new_tokens = max_tokens;
  stop.stop = model.chat_template().stop();
  const auto generate = [&](const StopOptions& until) {
    return Generate(model, model.tokenizer().EncodePrompt(spans), features, sampling, until, sizes);
  };
  const std::string& cue = question.answer_cue;
  if (cue.empty()) {
    GenerateResult result = generate(stop);
    return {std::move(result.text), result.state == llava::Answer::State::kLength};
  }
  StopOptions at_cue = stop;
  at_cue.stop.push_back(cue.substr(0, cue.find('\n')));
  const GenerateResult reasons = generate(at_cue);
  const std::string before = BeforeChoice(reasons.text, cue);
  model.chat_template().BeginAnswer(spans, before);
  stop.max_new_tokens = std::min(max_tokens, kLongestChoice);
  return {before + generate(stop).text, reasons.state == llava::Answer::State::kLength};
}

}  // namespace llava
