// llava-model quantize and random: versions whose decoder is packed for serving.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/checkpoint_folder.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/language_draft.h"
#include "model/checkpoint/random_tensors.h"
#include "model/checkpoint/tensor_names.h"
#include "model/checkpoint/version_folder.h"
#include "model/config/picture_shape.h"
#include "model/llava/self_test.h"
#include "model/llava/serving_model.h"
#include "model/nn/packed_weights.h"
#include "model/nn/quantize.h"
#include "model/progress/progress.h"
#include "model/progress/stop_request.h"
#include "model/text/labels.h"
#include "model/tools/commands.h"
#include "model/tools/common.h"
#include "model/tools/memory_for.h"
#include "model/tools/shapes.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

// Of a model that may fit into this machine in no other form, if it fits in this one.
std::optional<SelfTest> PackedSelfTest(const LanguageCheckpoint& written, int threads) {
  if (!MemoryForSelfTest(written.tensors.bytes() * 5 / 4, "packed model")) return std::nullopt;
  const std::vector<ChatMessage> exchange = {
      {ChatMessage::Role::kUser, "Can I eat an apple?", 0, {}},
      {ChatMessage::Role::kAssistant, "Yes.", 0, {}}};
  const LabelledTokens example =
      MakeLabels(*written.tokenizer, *written.chat_template, exchange, /*has_image=*/false);
  ServingOptions options;
  options.threads = threads;
  const auto tokens = static_cast<int64_t>(example.input_ids.size());
  options.kv_bytes = static_cast<uint64_t>((tokens / kKvBlockTokens + 1) *
                                           ServingModel::KvBlockBytes(written, at::kCPU, options));
  ServingModel model(written, at::kCPU, options);
  return MakeSelfTest(model, example.input_ids, example.labels, {});
}

void TellPublished(const fs::path& version, const std::string& how, const Sha256Digest& tower) {
  std::cout << "language " << version.string() << how << "\n"
            << "tower    " << ToHex(tower) << "\n";
}

// Packs and publishes as a new version of `out`, a ROOT/NAME. Returns the exit code.
int Publish(const LanguageCheckpoint& checkpoint, const PackingFlags& flags, const fs::path& out,
            const nlohmann::json& recipe, const LanguageDraft::SelfTestMaker& make_self_test) {
  const PackOptions options = [&flags] {
    PackOptions from_names = ToPackOptions({flags.dtype, flags.group, ""});
    from_names.keep_outliers = flags.outliers;
    return from_names;
  }();
  const ModelPath model(out);
  const StopRequest stop;
  ops::cpu::ThreadPool pool(ThreadsOr(flags.threads));
  Progress progress(stderr, "packing",
                    static_cast<uint64_t>(checkpoint.config.decoder.num_layers + 2));
  const auto step = [&](int64_t done, int64_t total) {
    done < total ? progress.Update(static_cast<uint64_t>(done))
                 : progress.Finish(static_cast<uint64_t>(done));
    return !StopRequest::Requested();
  };
  const auto path = PublishPacked(checkpoint, options, model.root, model.name, recipe.dump(), pool,
                                  step, make_self_test);
  if (!path) {
    std::fprintf(stderr, "\nllava-model: stopped; nothing was written\n");
    return 128 + StopRequest::Signal();
  }
  TellPublished(*path, " (" + ToQuantization(options).Describe() + ")", checkpoint.tower_digest);
  return 0;
}

// The canvases of LLaVA-1.6, for the tiles of this tower.
void SetAnyres(const VisionConfig& tower, FeatureConfig& features) {
  features.image_mode = ImageMode::kAnyres;
  features.grid = PublishedGrid(static_cast<int>(tower.image_size));
  features.tile_size = tower.image_size;
}

// Programs are in build/PRESET/bin of the tree.
fs::path DefaultTokenizer() {
  const fs::path program = fs::read_symlink("/proc/self/exe").parent_path();
  fs::path folder = (program / "../../../deploy/models/emoji").lexically_normal();
  if (fs::is_directory(folder)) return folder;
  throw std::runtime_error("there is no " + folder.string() +
                           ": name a folder with a tokenizer with --tokenizer");
}

}  // namespace

int RunQuantize(const QuantizeCommand& command) {
  OpenOptions open;
  open.tower = command.tower;
  open.chat_template = command.chat_template;
  const LanguageCheckpoint checkpoint = OpenLanguage(command.source, open);
  return Publish(checkpoint, command.packing, command.out,
                 {{"quantized_from",
                   {{"name", checkpoint.name},
                    {"version", checkpoint.version},
                    {"digest", ToHex(checkpoint.digest)}}}},
                 [&command](const LanguageCheckpoint& written) {
                   return PackedSelfTest(written, ThreadsOr(command.packing.threads));
                 });
}

int RunRandom(const RandomCommand& command) {
  LanguageCheckpoint checkpoint;
  checkpoint.name = command.shape;
  LanguageConfig& config = checkpoint.config;
  config.decoder = DecoderShape(command.shape);
  config.projector.out_width = config.decoder.hidden_size;
  if (command.tower.empty()) {
    const VisionConfig published;  // ViT-L/14 at 336
    checkpoint.tower_patches = published.num_patches();
    if (command.anyres) SetAnyres(published, config.features);
    // Of no tower that there is: one with this configuration and unknown tensors.
    checkpoint.tower_digest = HashBytes("random\n" + ToJson(published).dump());
  } else {
    const TowerCheckpoint tower = OpenTower(command.tower);
    config.projector.in_width = tower.config.hidden_size;
    checkpoint.tower_patches = tower.config.num_patches();
    checkpoint.tower_digest = tower.digest;
    if (command.anyres) SetAnyres(tower.config, config.features);
    CheckPair(config, tower.config, command.tower.string());
  }
  checkpoint.chat_template =
      std::make_shared<const ChatTemplate>(ChatTemplate::Builtin(command.chat_template));
  const fs::path tokenizer = command.tokenizer.empty() ? DefaultTokenizer() : command.tokenizer;
  checkpoint.tokenizer = std::make_shared<const Tokenizer>(
      Tokenizer::Load(OpenCheckpointFolder(tokenizer, /*verify=*/false).path)
          .WithSpecialPieces(checkpoint.chat_template->special_pieces()));
  if (checkpoint.tokenizer->vocab_size() > config.decoder.vocab_size) {
    throw std::runtime_error(tokenizer.string() + ": its tokenizer has " +
                             std::to_string(checkpoint.tokenizer->vocab_size()) + " ids, " +
                             command.shape + " has rows for " +
                             std::to_string(config.decoder.vocab_size));
  }
  config.decoder.bos_token_id = checkpoint.tokenizer->bos_id();
  config.decoder.eos_token_id = checkpoint.tokenizer->eos_id();
  CheckConfig(config, command.shape);
  RandomTensorOptions random;
  random.seed = command.seed;
  checkpoint.tensors = RandomTensors(LanguageTensors(config), random);
  const nlohmann::json recipe = {{"random", {{"shape", command.shape}, {"seed", command.seed}}}};
  if (!command.plain) {
    return Publish(checkpoint, command.packing, command.out, recipe, /*make_self_test=*/{});
  }
  const ModelPath model(command.out);
  TellPublished(PublishLanguage(checkpoint, model.root, model.name, recipe.dump()), "",
                checkpoint.tower_digest);
  return 0;
}

}  // namespace llava
