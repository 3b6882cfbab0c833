#include "model/checkpoint/checkpoint.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "model/checkpoint/checkpoint_folder.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/content_digest.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/foreign_config.h"
#include "model/checkpoint/mapped_tensor.h"
#include "model/checkpoint/tensor_names.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTemplateFile = "chat_template.json";

[[noreturn]] void Fail(const fs::path& path, const std::string& what) {
  throw std::runtime_error(path.string() + ": " + what);
}

VisionConfig ClipConfigOf(const CheckpointFolder& folder) {
  if (folder.layout == Layout::kRepository) return ReadVisionConfig(folder.config);
  return ReadClip(
      folder.config.Has("vision_config") ? folder.config.Object("vision_config") : folder.config,
      folder.base);
}

// What an original checkpoint calls its tower: a hub name or a folder.
std::string TowerName(const CheckpointFolder& folder) {
  const std::string key = folder.config.Has("mm_vision_tower") ? "mm_vision_tower" : "vision_tower";
  return folder.config.Text(key, "");
}

TowerCheckpoint MakeTower(const fs::path& path, VisionConfig config, TensorSource tensors) {
  CheckConfig(config, path.string());
  CheckTensors(tensors.tensors(), TowerTensors(config), OptionalTowerTensors(config),
               path.string());
  TowerCheckpoint tower;
  tower.name = FolderName(path);
  tower.config = config;
  tower.digest = DigestTower(config, tensors);
  tower.tensors = std::move(tensors);
  return tower;
}

TowerCheckpoint TowerOf(const CheckpointFolder& folder, const OpenOptions& options);

// The original layout keeps the tower's tensors inside (trained with the rest) or not, and its
// settings never: those are in a folder that the checkpoint or the caller names, or known.
TowerCheckpoint OriginalTower(const CheckpointFolder& folder, const OpenOptions& options) {
  const bool inside = !folder.tower.tensors().empty();
  const std::string name = TowerName(folder);
  // An absolute name stays as it is.
  const fs::path named = options.tower.empty() ? folder.path / name : options.tower;
  if (!options.tower.empty() || (!name.empty() && fs::is_directory(named))) {
    const CheckpointFolder described = OpenCheckpointFolder(named, /*verify=*/true);
    if (described.layout == Layout::kOriginal) {
      Fail(folder.path, "cannot use " + named.string() + " as its tower: it is no CLIP folder");
    }
    return inside ? MakeTower(folder.path, ClipConfigOf(described), folder.tower)
                  : TowerOf(described, {});
  }
  const auto published = PublishedTower(name);
  if (inside && published) return MakeTower(folder.path, *published, folder.tower);
  Fail(folder.path, std::string(inside ? "has its tower's tensors but not its settings"
                                       : "has no vision tower inside") +
                        ", and mm_vision_tower \"" + name +
                        "\" is no folder here: name the tower's folder (--tower)");
}

std::optional<SelfTest> ReadSelfTest(const CheckpointFolder& folder) {
  if (folder.manifest->self_test_tolerances.empty()) return std::nullopt;
  SelfTest test{{}, folder.manifest->self_test_tolerances};
  const auto file = TensorFile::Open(folder.path / kSelfTestFile);
  for (const auto& [name, info] : file->tensors()) test.tensors[name] = file->Get(name).clone();
  return test;
}

TowerCheckpoint TowerOf(const CheckpointFolder& folder, const OpenOptions& options) {
  const bool has_none = folder.layout == Layout::kOriginal || folder.layout == Layout::kDecoder;
  if (!options.tower.empty() && !has_none) {
    Fail(folder.path,
         "has its own tower; no other one (" + options.tower.string() + ") can be named for it");
  }
  switch (folder.layout) {
    case Layout::kRepository: {
      if (folder.manifest->kind != Manifest::Kind::kTower) {
        Fail(folder.path, "is a language model; its tower has the digest " +
                              ToHex(folder.manifest->tower_digest));
      }
      TowerCheckpoint tower;
      tower.name = folder.manifest->name;
      tower.version = folder.manifest->version;
      tower.in_repository = true;
      tower.config = ReadVisionConfig(folder.config);
      tower.digest = folder.manifest->tower_digest;
      CheckTensors(folder.tower.tensors(), TowerTensors(tower.config),
                   OptionalTowerTensors(tower.config), folder.path.string());
      tower.tensors = folder.tower;
      tower.self_test = ReadSelfTest(folder);
      return tower;
    }
    case Layout::kLlavaHf:
      return MakeTower(folder.path, ClipConfigOf(folder), folder.tower);
    case Layout::kOriginal:
      return OriginalTower(folder, options);
    case Layout::kClip:
      return MakeTower(folder.path, ClipConfigOf(folder), folder.tower);
    case Layout::kDecoder:
      if (options.tower.empty()) Fail(folder.path, "is a language model alone: it has no tower");
      return OpenTower(options.tower);
  }
  Fail(folder.path, "has an unknown layout");
}

std::shared_ptr<const ChatTemplate> ReadTemplate(const fs::path& file) {
  try {
    return std::make_shared<const ChatTemplate>(ChatTemplate::Parse(ReadSmallFile(file)));
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(file.string() + ": " + error.what());
  }
}

// What checkpoints of this family were trained with. A decoder with a window is Mistral 0.1, which
// BakLLaVA taught the format of LLaVA-1.5; LLaVA-1.6 is on Mistral Instruct 0.2, which has none.
// The pieces of ChatML are LLaVA-1.6-34B's, on Yi.
std::string PublishedTemplate(const CheckpointFolder& folder, const Tokenizer& tokenizer) {
  if (tokenizer.IdOf("<|im_start|>") >= 0 && tokenizer.IdOf("<|im_end|>") >= 0) {
    return "chatml_direct";
  }
  const JsonObject decoder =
      folder.config.Has("text_config") ? folder.config.Object("text_config") : folder.config;
  const std::string type = decoder.Text("model_type", "");
  const bool mistral = type == "mistral" || type == "llava_mistral";
  return mistral && !MistralWindow(decoder) ? "mistral_instruct" : "v1";
}

// A built-in name or a file. A foreign folder's own chat_template.json is a Jinja program or
// somebody's own format: it is not ours.
std::shared_ptr<const ChatTemplate> ChooseTemplate(const CheckpointFolder& folder,
                                                   const Tokenizer& tokenizer,
                                                   const std::string& wanted) {
  if (!wanted.empty() && fs::is_regular_file(wanted)) return ReadTemplate(wanted);
  if (wanted.empty() && folder.layout == Layout::kRepository) {
    return ReadTemplate(folder.path / kTemplateFile);
  }
  return std::make_shared<const ChatTemplate>(
      ChatTemplate::Builtin(wanted.empty() ? PublishedTemplate(folder, tokenizer) : wanted));
}

std::shared_ptr<const Tokenizer> WithTemplate(const CheckpointFolder& folder,
                                              const Tokenizer& plain,
                                              const ChatTemplate& chat_template,
                                              int64_t vocab_size) {
  auto tokenizer =
      std::make_shared<const Tokenizer>(plain.WithSpecialPieces(chat_template.special_pieces()));
  if (tokenizer->vocab_size() > vocab_size) {
    Fail(folder.path, "its tokenizer has ids up to " + std::to_string(tokenizer->vocab_size() - 1) +
                          ", its embedding table " + std::to_string(vocab_size) + " rows");
  }
  if (folder.layout == Layout::kLlavaHf && tokenizer->options().image_inline &&
      folder.config.Has("image_token_index") &&
      folder.config.Int("image_token_index") != tokenizer->IdOf(kImageMark)) {
    folder.config.Fail("image_token_index", "is " + folder.config.At("image_token_index").dump() +
                                                ", the tokenizer has <image> at " +
                                                std::to_string(tokenizer->IdOf(kImageMark)));
  }
  return tokenizer;
}

// First bytes of each tensor.
void HashSamples(const std::map<std::string, TensorInfo>& tensors,
                 const std::function<at::Tensor(const std::string&)>& get, Sha256& hash) {
  constexpr size_t kSampleBytes = 4096;
  for (const auto& [name, info] : tensors) {
    hash.Update(name + "\n" + DtypeName(info.dtype) + "\n" + ShapeText(info.shape) + "\n");
    const at::Tensor tensor = get(name);
    hash.Update(std::span(static_cast<const uint8_t*>(tensor.const_data_ptr()),
                          std::min(tensor.nbytes(), kSampleBytes)));
  }
}

// Names and sizes of a folder's files, and what is in those of at most `whole` bytes.
void HashFiles(const fs::path& path, uint64_t whole, Sha256& hash) {
  std::map<std::string, uint64_t> files;
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.is_regular_file()) files[entry.path().filename().string()] = entry.file_size();
  }
  for (const auto& [name, size] : files) {
    hash.Update(name + "\n" + std::to_string(size) + "\n");
    if (size <= whole) hash.Update(ToBytes(HashFile((path / name).string())));
  }
}

// Names a checkpoint that has no manifest; see LanguageCheckpoint::digest.
Sha256Digest DigestForeign(const LanguageCheckpoint& checkpoint, const CheckpointFolder& folder) {
  constexpr uint64_t kSmallFile = 1 << 20;
  Sha256 hash;
  hash.Update("llava checkpoint 1\n" + ToJson(checkpoint.config, checkpoint.tower_patches).dump());
  hash.Update(ToBytes(checkpoint.tower_digest) + ToBytes(checkpoint.tokenizer->digest()));
  hash.Update(checkpoint.chat_template->ToJson());
  if (folder.base != folder.path) {
    // Of the base's own tensors: those of the sum would have to be computed.
    hash.Update("adapter\n");
    HashSamples(
        folder.file->tensors(), [&](const auto& name) { return folder.file->Get(name); }, hash);
    HashFiles(folder.base, kSmallFile, hash);
    HashFiles(folder.path, std::numeric_limits<uint64_t>::max(), hash);
    return hash.Finish();
  }
  HashSamples(
      checkpoint.tensors.tensors(), [&](const auto& name) { return checkpoint.tensors.Get(name); },
      hash);
  HashFiles(folder.path, kSmallFile, hash);
  return hash.Finish();
}

void CheckFamily(const CheckpointFolder& folder) {
  if (folder.layout == Layout::kLlavaHf) CheckHfFamily(folder.config);
  if (folder.layout == Layout::kOriginal) CheckOriginalFamily(folder.config);
}

LanguageConfig ForeignConfig(const CheckpointFolder& folder, const VisionConfig& tower) {
  switch (folder.layout) {
    case Layout::kLlavaHf:
      return ReadHfLanguage(folder.config, folder.base, tower);
    case Layout::kDecoder:
      return ReadDecoderAlone(folder.config, tower);
    default:
      return ReadOriginalLanguage(folder.config, tower);
  }
}

LanguageCheckpoint LanguageOf(CheckpointFolder folder, const OpenOptions& options,
                              std::optional<TowerCheckpoint>& own_tower) {
  LanguageCheckpoint checkpoint;
  if (folder.is_tower()) Fail(folder.path, "is a vision tower, not a language model");
  if (folder.layout == Layout::kRepository) {
    if (!options.tower.empty()) {
      Fail(folder.path,
           "is a repository version, whose tower is an entry of its own; no other one (" +
               options.tower.string() + ") can be named for it");
    }
    checkpoint.name = folder.manifest->name;
    checkpoint.version = folder.manifest->version;
    checkpoint.in_repository = true;
    checkpoint.config = ReadLanguageConfig(folder.config, checkpoint.tower_patches);
    checkpoint.tower_digest = folder.manifest->tower_digest;
    checkpoint.self_test = ReadSelfTest(folder);
  } else {
    if (folder.layout == Layout::kDecoder && !options.without_projector) {
      Fail(folder.path,
           "is a language model without a projector, which knows no pictures: train one first "
           "(llava-train align), or begin stage 2 with a published one (llava-train finetune, "
           "projector.from)");
    }
    CheckFamily(folder);
    own_tower = TowerOf(folder, options);
    checkpoint.name = FolderName(folder.path);
    checkpoint.config = ForeignConfig(folder, own_tower->config);
    checkpoint.tower_digest = own_tower->digest;
    checkpoint.tower_patches = own_tower->config.num_patches();
    CheckConfig(checkpoint.config, folder.path.string());
    CheckPair(checkpoint.config, own_tower->config, folder.path.string());
  }
  if (const auto& quantization = checkpoint.config.decoder.quantization;
      quantization && !options.packed) {
    Fail(folder.path, "its decoder is packed for serving (" + quantization->Describe() +
                          "): llava-llm can read it, nothing else; use the checkpoint that it was "
                          "made from");
  }
  // Tied tables are one; some writers store them twice.
  if (checkpoint.config.decoder.tie_word_embeddings) folder.language.Remove("lm_head.weight");
  NameSingleLayer(checkpoint.config.projector, folder.language);
  CheckTensors(folder.language.tensors(),
               folder.layout == Layout::kDecoder ? DecoderTensors(checkpoint.config.decoder)
                                                 : LanguageTensors(checkpoint.config),
               {}, folder.path.string());
  checkpoint.tensors = std::move(folder.language);

  const Tokenizer tokenizer = Tokenizer::Load(folder.base);
  checkpoint.chat_template = ChooseTemplate(folder, tokenizer, options.chat_template);
  checkpoint.template_assumed = options.chat_template.empty() && !folder.manifest;
  checkpoint.tokenizer = WithTemplate(folder, tokenizer, *checkpoint.chat_template,
                                      checkpoint.config.decoder.vocab_size);
  if (folder.manifest) {
    checkpoint.digest = folder.manifest->digest;
    if (options.chat_template.empty() &&
        checkpoint.tokenizer->digest() != folder.manifest->tokenizer_digest) {
      Fail(folder.path, "its tokenizer is not the one that its manifest names");
    }
  } else {
    checkpoint.digest = DigestForeign(checkpoint, folder);
  }
  return checkpoint;
}

}  // namespace

TowerCheckpoint OpenTower(const fs::path& path, const OpenOptions& options) {
  const CheckpointFolder folder = OpenCheckpointFolder(path, options);
  return OpenBeingChecked(*folder.file, [&] { return TowerOf(folder, options); });
}

LanguageCheckpoint OpenLanguage(const fs::path& path, const OpenOptions& options,
                                std::optional<TowerCheckpoint>* tower) {
  CheckpointFolder folder = OpenCheckpointFolder(path, options);
  const std::shared_ptr<const TensorFile> file = folder.file;
  std::optional<TowerCheckpoint> unasked;
  return OpenBeingChecked(
      *file, [&] { return LanguageOf(std::move(folder), options, tower ? *tower : unasked); });
}

}  // namespace llava
