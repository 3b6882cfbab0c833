#include "model/train/language_task.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/tensor.h>

#include "model/checkpoint/memory_tensors.h"
#include "model/checkpoint/tensor_names.h"
#include "model/data/scenes/scoring.h"
#include "model/eval/share.h"
#include "model/eval/text_map.h"
#include "model/llava/self_test.h"
#include "model/nn/llama.h"
#include "model/progress/stop_request.h"
#include "model/text/labels.h"
#include "model/train/fresh_weights.h"
#include "model/train/language_settings.h"
#include "model/train/map_answers.h"
#include "model/train/map_lessons.h"
#include "model/train/master_weights.h"
#include "model/train/prefetcher.h"

namespace llava {
namespace {

// Purposes of the random streams.
constexpr uint64_t kWeights = 1, kPlaces = 2, kProjector = 3, kNoise = 4;
constexpr double kPlaceDeviation = 0.03;
constexpr int64_t kEvaluatedAtOnce = 32;  // scenes
constexpr int64_t kPrepared = 4;          // batches

uint64_t SeedOf(uint64_t seed, uint64_t purpose, uint64_t number = 0) {
  return Random(seed, number, purpose).Bits();
}

// A batch of lessons with its numbers as tensors.
struct PreparedBatch {
  PreparedBatch(MapBatch lessons, at::Device device) : batch(std::move(lessons)) {
    const auto words = static_cast<int64_t>(batch.text_ids.size());
    std::vector<int64_t> places = batch.sources;
    for (int64_t& place : places) place = place >= 0 ? place : words - 1 - place;
    text_ids = at::tensor(batch.text_ids, at::kLong);
    order = at::tensor(places, at::kLong);
    rows = at::tensor(batch.rows, at::kLong);
    targets = at::tensor(batch.targets, at::kLong);
    weights = at::tensor(batch.weights, at::kFloat);
    for (at::Tensor* tensor : {&text_ids, &order, &rows, &targets, &weights}) {
      *tensor = tensor->to(device);
    }
  }
  MapBatch batch;
  at::Tensor text_ids, order, rows, targets, weights;
};

DecoderConfig WithVocabulary(DecoderConfig config, const Tokenizer& tokenizer) {
  config.vocab_size = tokenizer.vocab_size();
  config.bos_token_id = tokenizer.bos_id();
  config.eos_token_id = tokenizer.eos_id();
  return config;
}

class LanguageTask : public TrainingTask {
 public:
  LanguageTask(LanguageSettings language, const TaskSettings& task)
      : language_(std::move(language)),
        task_(task),
        chat_template_(language_.start ? language_.start->chat_template
                                       : std::make_shared<const ChatTemplate>(
                                             ChatTemplate::Builtin(language_.chat_template))),
        tokenizer_(language_.start ? language_.start->tokenizer
                                   : std::make_shared<const Tokenizer>(
                                         Tokenizer::Load(language_.tokenizer)
                                             .WithSpecialPieces(chat_template_->special_pieces()))),
        config_(WithVocabulary(language_.decoder, *tokenizer_)),
        lessons_(language_.lessons, tokenizer_, chat_template_, task.seed),
        map_(FirstMap()),
        start_(FirstWeights()),
        decoder_(config_, start_, task.device(), task.compute_dtype),
        weights_(
            {[this](const ParameterVisitor& visit) { decoder_.VisitParameters(visit); }}, start_,
            [](const std::string&) { return true; }, task.compute_dtype),
        batches_([this](int64_t index) { return Prepare(index); },
                 static_cast<int>(task.loader_threads), kPrepared) {
    decoder_.set_gradient_checkpointing(task.gradient_checkpointing);
  }

  std::string kind() const override { return "pretrain-lm"; }
  int64_t total_steps() const override { return language_.steps; }

  std::vector<ParameterGroup> groups() override {
    ParameterGroup matrices{"matrices", {}, language_.learning_rate, language_.weight_decay};
    ParameterGroup vectors{"vectors", {}, language_.learning_rate, 0};
    for (const auto& parameter : weights_.masters()) {
      (parameter.second.dim() > 1 ? matrices : vectors).parameters.push_back(parameter);
    }
    for (const auto& [name, parameter] : map_.parameters()) {
      matrices.parameters.emplace_back("text_map." + name, parameter);
    }
    return {std::move(matrices), std::move(vectors)};
  }

  MicroBatch Forward(int64_t step, int64_t micro) override {
    const int64_t index = step * task_.accumulation + micro;
    MicroBatch result;
    const PreparedBatch batch = batches_.Take(index, &result.waited_seconds);
    weights_.Bind();
    const at::Tensor logits = Logits(batch, SeedOf(task_.seed, kNoise, index));
    const at::Tensor loss = Loss(batch, logits);
    result.loss = (loss * batch.weights).sum() / batch.weights.sum();
    result.samples = static_cast<int64_t>(batch.batch.segments.size());
    result.tokens = static_cast<int64_t>(batch.batch.sources.size());
    result.trained_tokens = static_cast<int64_t>(batch.batch.targets.size());
    result.figures = {{"key_accuracy", KeyAccuracy(batch, logits)}};
    result.origin = "lessons " + std::to_string(index);
    return result;
  }

  nlohmann::ordered_json Check(std::FILE* progress) override;
  Figures Evaluate() override;
  std::filesystem::path Publish(const std::filesystem::path& root, const std::string& name,
                                const nlohmann::ordered_json& recipe) override;

 private:
  TextMap FirstMap() const {
    if (!language_.start) {
      TextMap map(*tokenizer_, config_.hidden_size, SeedOf(task_.seed, kPlaces), kPlaceDeviation,
                  language_.lessons.num_categories);
      map.MoveTo(task_.device());
      return map;
    }
    TextMap map(*tokenizer_, language_.start_text_map);
    map.MoveTo(task_.device());
    for (auto [name, vectors] : map.parameters()) {
      if (vectors.size(1) != config_.hidden_size) {
        throw std::invalid_argument(language_.start_text_map + ": vectors of width " +
                                    std::to_string(vectors.size(1)) + ", the model to start from " +
                                    "has width " + std::to_string(config_.hidden_size));
      }
      vectors.requires_grad_();
    }
    return map;
  }
  // Of the decoder.
  TensorSource FirstWeights() const {
    if (!language_.start) {
      return MemoryTensors(FreshWeights(SeedOf(task_.seed, kWeights)).Decoder(config_));
    }
    TensorSource decoder = language_.start->tensors;
    std::vector<std::string> others;
    for (const auto& [name, info] : decoder.tensors()) {
      if (name.starts_with("model.mm_projector.") || name == kImageNewline) others.push_back(name);
    }
    for (const std::string& name : others) decoder.Remove(name);
    return decoder;
  }
  PreparedBatch Prepare(int64_t index) const {
    return {lessons_.Make(index / task_.accumulation, index), task_.device()};
  }

  // [trained tokens, V]. Maps are disturbed by noise of seed `noise`; 0: not at all.
  at::Tensor Logits(const PreparedBatch& batch, uint64_t noise) const {
    at::Tensor embeddings = decoder_.Embed(batch.text_ids);
    if (!batch.batch.scenes.empty()) {
      at::Tensor words = map_.EmbedWords(decoder_, batch.batch.scenes);
      if (noise != 0 && language_.map_noise > 0) words = Disturb(words, noise);
      embeddings = at::cat({embeddings, map_.WithPlaces(words).flatten(0, 1)});
    }
    const at::Tensor hidden =
        decoder_.Forward(embeddings.index_select(0, batch.order), batch.batch.segments);
    return decoder_.Logits(hidden.index_select(0, batch.rows));
  }

  static at::Tensor Loss(const PreparedBatch& batch, const at::Tensor& logits) {
    return at::cross_entropy_loss(logits, batch.targets, std::nullopt, at::Reduction::None);
  }

  double KeyAccuracy(const PreparedBatch& batch, const at::Tensor& logits) const {
    at::NoGradGuard guard;
    const at::Tensor keys = batch.weights != 1;
    const at::Tensor right = (logits.argmax(-1) == batch.targets).logical_and(keys);
    return right.sum().item<double>() / std::max<double>(1, keys.sum().item<double>());
  }

  // Mixes cells with others, scales maps and cells, adds noise: features of real pictures are no
  // clean words either. words [B, cells, D].
  at::Tensor Disturb(const at::Tensor& words, uint64_t seed) const {
    const double noise = language_.map_noise;
    const int64_t maps = words.size(0), cells = words.size(1);
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    const auto uniform = [&](at::IntArrayRef shape) {
      return at::rand(shape, generator, at::kFloat).to(words.options());
    };
    const at::Tensor mix = uniform({maps, cells, 1}) * (noise / 2);
    const at::Tensor others =
        words.detach()
            .flatten(0, 1)
            .index_select(0, at::randperm(maps * cells, generator, at::kLong).to(words.device()))
            .view_as(words);
    const at::Tensor scale =
        (uniform({maps, 1, 1}) + uniform({maps, cells, 1})) * noise + (1 - noise);
    const double deviation = weights_.masters().front().second.detach().std().item<double>();
    const at::Tensor grain = at::randn(words.sizes(), generator, at::kFloat) * (noise * deviation);
    return (words + mix * (others - words)) * scale + grain.to(words.options());
  }

  const LanguageSettings language_;
  const TaskSettings task_;
  const std::shared_ptr<const ChatTemplate> chat_template_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const DecoderConfig config_;
  const MapLessons lessons_;
  const TextMap map_;
  const TensorSource start_;
  LlamaDecoder decoder_;
  MasterWeights weights_;
  Prefetcher<PreparedBatch> batches_;  // last: its threads use the others
};

nlohmann::ordered_json LanguageTask::Check(std::FILE*) {
  nlohmann::ordered_json result;
  int64_t parameters = 0;
  for (const ParameterGroup& group : groups()) {
    for (const auto& [name, parameter] : group.parameters) parameters += parameter.numel();
  }
  result["parameters"] = parameters;
  result["vocabulary"] = config_.vocab_size;
  // A look at both kinds of batches.
  constexpr int64_t kBatches = 8;
  for (const bool dense : {true, false}) {
    const int64_t first = dense ? 0 : language_.lessons.dense_steps;
    const int64_t end = dense ? language_.lessons.dense_steps : language_.steps;
    int64_t batches = 0, rows = 0, tokens = 0, trained = 0;
    std::map<std::string, int64_t> turns;
    for (int64_t step = first; step < end && batches < kBatches; ++step, ++batches) {
      const MapBatch batch = lessons_.Make(step, step * task_.accumulation);
      rows += static_cast<int64_t>(batch.segments.size());
      tokens += static_cast<int64_t>(batch.sources.size());
      trained += static_cast<int64_t>(batch.targets.size());
      for (const AskedTurn& turn : batch.turns) {
        ++turns[(turn.about_picture ? "" : "fact ") + std::string(NameOf(turn.type))];
      }
    }
    if (batches == 0) continue;
    auto& part = result[dense ? "dense_batches" : "natural_batches"];
    part = {
        {"looked_at", batches}, {"rows", rows}, {"tokens", tokens}, {"trained_tokens", trained}};
    part["turns"] = turns;
  }
  return result;
}

// Of all types the mean, then each.
void AddShares(const std::string& name, const std::map<QuestionType, Share>& right_of,
               Figures& figures) {
  const size_t mean = figures.size();
  figures.emplace_back(name, 0);
  for (const auto& [type, right] : right_of) {
    figures[mean].second += right.value() / static_cast<double>(right_of.size());
    figures.emplace_back(name + "." + std::string(NameOf(type)), right.value());
  }
}

Figures LanguageTask::Evaluate() {
  at::NoGradGuard guard;
  weights_.Bind();
  double loss = 0, weight = 0;
  std::map<QuestionType, Share> right_of;
  for (int64_t first = 0; first < language_.evaluated_scenes; first += kEvaluatedAtOnce) {
    StopRequest::ThrowIfRequested();
    const int64_t count = std::min(kEvaluatedAtOnce, language_.evaluated_scenes - first);
    const PreparedBatch batch(lessons_.HeldOut(first, count), task_.device());
    const at::Tensor logits = Logits(batch, /*noise=*/0);
    loss += (Loss(batch, logits) * batch.weights).sum().item<double>();
    weight += batch.weights.sum().item<double>();
    // A turn is right if all of its key words are, each after the true words before it.
    const at::Tensor said = logits.argmax(-1).cpu();
    const int64_t* ids = said.const_data_ptr<int64_t>();
    std::vector<bool> right(batch.batch.turns.size(), true);
    for (size_t i = 0; i < batch.batch.targets.size(); ++i) {
      const int64_t target = batch.batch.targets[i];
      if (lessons_.rows().IsKey(static_cast<int32_t>(target)) && ids[i] != target) {
        right[batch.batch.turn_of[i]] = false;
      }
    }
    for (size_t i = 0; i < right.size(); ++i) {
      right_of[batch.batch.turns[i].type] += {right[i], 1};
    }
  }
  Figures figures = {{"loss", loss / weight}};
  AddShares("right", right_of, figures);
  if (language_.greedy_questions == 0) return figures;

  const auto questions = lessons_.HeldOutQuestions(language_.greedy_questions);
  std::vector<MapQuestion> asked;
  for (const auto& question : questions) {
    asked.push_back({&question.scene, question.turn.question});
  }
  const std::vector<std::string> answers =
      AnswerMaps(decoder_, map_, *tokenizer_, *chat_template_, asked);
  right_of.clear();
  for (size_t i = 0; i < questions.size(); ++i) {
    const Turn& turn = questions[i].turn;
    right_of[turn.type] += {SameAnswer(turn.type, turn.answer, answers[i]), 1};
  }
  AddShares("greedy", right_of, figures);
  return figures;
}

std::filesystem::path LanguageTask::Publish(const std::filesystem::path& root,
                                            const std::string& name,
                                            const nlohmann::ordered_json& recipe) {
  const TowerCheckpoint tower = OpenTower(language_.tower);
  LanguageCheckpoint checkpoint;
  checkpoint.name = name;
  checkpoint.config.decoder = config_;
  checkpoint.config.projector = {.in_width = tower.config.hidden_size,
                                 .out_width = config_.hidden_size};
  checkpoint.config.features.image_mode = language_.image_mode;
  NamedTensors tensors = FreshWeights(SeedOf(task_.seed, kProjector))
                             .Projector(checkpoint.config.projector, FreshWeights::kSmallLayer);
  for (const auto& [parameter, master] : weights_.masters())
    tensors[parameter] = master.detach().cpu();
  for (auto& [parameter, tensor] : tensors) tensor = tensor.to(at::kBFloat16);
  checkpoint.tensors = MemoryTensors(std::move(tensors));
  checkpoint.tower_digest = tower.digest;
  checkpoint.tower_patches = tower.config.num_patches();
  checkpoint.tokenizer = tokenizer_;
  checkpoint.chat_template = chat_template_;
  const std::vector<ChatMessage> exchange = {
      {ChatMessage::Role::kUser, "Can I eat an apple?", 0, {}},
      {ChatMessage::Role::kAssistant, "Yes.", 0, {}}};
  const LabelledTokens example =
      MakeLabels(*tokenizer_, *chat_template_, exchange, /*has_image=*/false);
  checkpoint.self_test = MakeSelfTest(checkpoint, example.input_ids, example.labels, {});
  // First the map: a version that is there ends the run, whoever repeats it.
  if (!language_.text_map.empty()) map_.Save(language_.text_map);
  return PublishLanguage(checkpoint, root, name, recipe.dump());
}

}  // namespace

std::unique_ptr<TrainingTask> MakeLanguageTask(Recipe& recipe, const TaskSettings& settings) {
  settings.RequireOneDevice("pretrain-lm");
  return std::make_unique<LanguageTask>(LanguageSettings::From(recipe), settings);
}

}  // namespace llava
