#include <cstdint>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ops/empty.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/checkpoint_folder.h"
#include "model/config/picture_shape.h"
#include "model/llava/self_test.h"
#include "model/text/labels.h"
#include "model/tools/commands.h"
#include "model/tools/find_tower.h"
#include "model/tools/memory_for.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

// Whether to make one for these tensors: asked for, or by default where the memory is there.
bool WantsSelfTest(ImportCommand::MakeSelfTest wanted, const TensorSource& tensors,
                   const std::string& what) {
  if (wanted != ImportCommand::MakeSelfTest::kIfPossible) {
    return wanted == ImportCommand::MakeSelfTest::kYes;
  }
  // In float32, while it is tried in other arithmetic.
  return MemoryForSelfTest(tensors.numel() * sizeof(float) * 5 / 4, what);
}

// A picture of smooth colours with a checkered part: [side, side, 3] uint8.
at::Tensor TestPicture(int64_t side) {
  const at::Tensor picture = at::empty({side, side, 3}, at::kByte);
  auto* to = picture.data_ptr<uint8_t>();
  for (int64_t y = 0; y < side; ++y) {
    for (int64_t x = 0; x < side; ++x) {
      const bool dark = x > side / 2 && (x / 4 + y / 4) % 2 == 0;
      for (int64_t value : {255 * x / side, 255 * y / side, 255 - 255 * x / side}) {
        *to++ = static_cast<uint8_t>(dark ? value / 4 : value);
      }
    }
  }
  return picture;
}

void AddSelfTest(TowerCheckpoint& tower, int64_t layer) {
  tower.self_test = MakeSelfTest(tower, TestPicture(tower.config.image_size), layer);
}

// With what `tower` makes of the test picture.
void AddSelfTest(LanguageCheckpoint& language, const TowerCheckpoint& tower) {
  const FeatureConfig& selected = language.config.features;
  at::Tensor features =
      MakeSelfTest(tower, TestPicture(tower.config.image_size), selected.select_layer)
          .tensors.at("features");
  if (selected.select_feature == SelectFeature::kPatch) features = features.slice(0, 1);
  std::vector<Resolution> sizes;
  const PictureShape shape(selected, language.tower_patches);
  if (!shape.is_fixed()) {  // a picture of the tower's size, all of whose tiles look alike
    const auto side = static_cast<int>(tower.config.image_size);
    sizes = {{side, side}};
    features = features.repeat({shape.NumRows(sizes[0]) / shape.tile_rows(), 1});
  }
  const std::vector<ChatMessage> exchange = {
      {ChatMessage::Role::kUser, "What is in the picture?", 1, {}},
      {ChatMessage::Role::kAssistant, "Colours and squares.", 0, {}}};
  const LabelledTokens example =
      MakeLabels(*language.tokenizer, *language.chat_template, exchange, /*has_image=*/true);
  language.self_test = MakeSelfTest(language, example.input_ids, example.labels,
                                    {features.contiguous()}, at::kCPU, sizes);
}

void ImportTower(const TowerCheckpoint& tower, const fs::path& repository, const std::string& name,
                 const std::string& recipe = "{}") {
  const TowerSearch there = FindTower(repository, tower.digest);
  if (there.found) {
    std::cout << "tower    " << there.found->string() << " (already there)\n";
    return;
  }
  if (!there.unknown.empty()) {
    std::cerr << repository.string() << ": the tower is stored anew" << there.NotRead() << "\n";
  }
  std::cout << "tower    " << PublishTower(tower, repository, name, recipe).string() << "\n";
}

}  // namespace

void RunImport(const ImportCommand& command) {
  using MakeOne = ImportCommand::MakeSelfTest;
  // Every file is checked here, once.
  OpenOptions options;
  options.base = command.base;
  const CheckpointFolder folder = OpenCheckpointFolder(command.source, options);
  // What a version brings along is kept, unless another one is asked for.
  const auto keep = [&](const std::optional<SelfTest>& brought) {
    return brought.has_value() && command.self_test == MakeOne::kIfPossible;
  };
  if (folder.is_tower()) {
    if (!command.projector.empty() || !command.chat_template.empty() || !command.tower.empty() ||
        !command.tower_name.empty()) {
      throw std::runtime_error(folder.path.string() +
                               ": is a vision tower: --projector, --chat-template, --tower and "
                               "--tower-name do not apply to it");
    }
    const OpenOptions checked{{}, "", /*verify=*/false};
    TowerCheckpoint tower = OpenTower(folder.path, checked);
    if (!keep(tower.self_test) && WantsSelfTest(command.self_test, tower.tensors, "tower")) {
      AddSelfTest(tower, FeatureConfig().select_layer);
    }
    ImportTower(tower, command.repository, command.name,
                folder.manifest ? folder.manifest->recipe : "{}");
    return;
  }

  if (!folder.manifest) options.tower = command.tower;
  options.chat_template = command.chat_template;
  options.verify = false;
  std::optional<TowerCheckpoint> tower;
  LanguageCheckpoint language = OpenLanguage(folder.path, options, &tower);
  if (!command.projector.empty()) OverlayProjector(language, command.projector);

  // A language version of a repository comes without its tower.
  if (!tower) tower = OpenTowerOf(language, command.tower, command.repository);
  if (!keep(tower->self_test) && WantsSelfTest(command.self_test, tower->tensors, "tower")) {
    AddSelfTest(*tower, language.config.features.select_layer);
  }
  if (!keep(language.self_test) &&
      WantsSelfTest(command.self_test, language.tensors, "language model")) {
    AddSelfTest(language, *tower);
  }
  if (!folder.manifest || !command.tower.empty()) {
    ImportTower(*tower, command.repository,
                command.tower_name.empty() ? command.name + "-tower" : command.tower_name);
  }
  if (language.template_assumed) {
    std::cout << "template " << language.chat_template->name()
              << " (assumed; --chat-template names another)\n";
  }
  nlohmann::json recipe = {{"imported_from", ToString(folder.layout)},
                           {"source", FolderName(folder.path)}};
  if (folder.base != folder.path) recipe["merged_into"] = FolderName(folder.base);
  if (!command.projector.empty()) recipe["projector"] = FolderName(command.projector);
  std::cout << "language "
            << PublishLanguage(language, command.repository, command.name, recipe.dump()).string()
            << "\n";
}

}  // namespace llava
