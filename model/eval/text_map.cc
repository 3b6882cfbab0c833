#include "model/eval/text_map.h"

#include <map>
#include <memory>
#include <stdexcept>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>

#include "model/checkpoint/tensor_file.h"

namespace llava {
namespace {

constexpr int64_t kCells = kSceneGrid * kSceneGrid;
constexpr double kSizeShare = 0.7;  // of the size word at a centre
constexpr const char* kRows = "rows";
constexpr const char* kColumns = "columns";

// The id that a word alone is encoded as, -1 if it is no single piece.
int32_t IdOfWord(const Tokenizer& tokenizer, std::string_view word) {
  const std::vector<int32_t> ids = tokenizer.EncodePieces(word);
  return ids.size() == 1 ? ids[0] : -1;
}

}  // namespace

TextMap::Words TextMap::FindWords(const Tokenizer& tokenizer, int num_categories) {
  std::string missing;
  const auto find = [&](std::string_view word, int32_t id) {
    if (id < 0) (missing += missing.empty() ? "\"" : ", \"") += std::string(word) + "\"";
    return id;
  };
  Words words;
  for (int i = 0; i < static_cast<int>(Categories().size()); ++i) {
    const std::string& name = Categories()[i].name;
    const int32_t id = IdOfWord(tokenizer, name);
    words.categories.push_back(i < num_categories ? find(name, id) : id);
  }
  for (const Background& background : kBackgrounds) {
    words.backgrounds.push_back(find(background.name, IdOfWord(tokenizer, background.name)));
  }
  words.part = find("<part>", tokenizer.IdOf("<part>"));
  words.small = find("small", IdOfWord(tokenizer, "small"));
  words.big = find("big", IdOfWord(tokenizer, "big"));
  if (!missing.empty()) {
    throw std::invalid_argument("maps of words need tokenizers with a piece of its own for " +
                                missing + "; `llava-train tokenizer` makes one");
  }
  return words;
}

TextMap::TextMap(const Tokenizer& tokenizer, int64_t width, uint64_t seed, double deviation,
                 int num_categories)
    : words_(FindWords(tokenizer, num_categories)) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  for (const char* name : {kRows, kColumns}) {
    at::Tensor vectors = at::randn({kSceneGrid, width}, generator, at::kFloat) * deviation;
    parameters_.emplace_back(name, vectors.set_requires_grad(true));
  }
}

TextMap::TextMap(const Tokenizer& tokenizer, const std::filesystem::path& file)
    : words_(FindWords(tokenizer, kSmallCategorySet)) {
  const std::unique_ptr<TensorFile> stored = TensorFile::Open(file);
  for (const char* name : {kRows, kColumns}) {
    const auto found = stored->tensors().find(name);
    if (found == stored->tensors().end() || found->second.shape.size() != 2 ||
        found->second.shape[0] != kSceneGrid) {
      throw std::runtime_error(file.string() + ": is no map of words: expected the tensor \"" +
                               name + "\" with " + std::to_string(kSceneGrid) + " rows");
    }
    parameters_.emplace_back(name, stored->Get(name).to(at::kFloat, false, /*copy=*/true));
  }
}

void TextMap::Save(const std::filesystem::path& file) const {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, value] : parameters_) tensors[name] = value.detach().cpu();
  SaveSafetensors(file, tensors);
}

void TextMap::MoveTo(at::Device device) {
  for (auto& [name, value] : parameters_) {
    value = value.detach().to(device).set_requires_grad(value.requires_grad());
  }
}

at::Tensor TextMap::EmbedWords(const LlamaDecoder& decoder, std::span<const Scene> scenes) const {
  std::vector<int64_t> ids;      // the words of all cells, then the size words of the centres
  std::vector<int64_t> centres;  // their cells
  std::vector<int64_t> sizes;
  ids.reserve(scenes.size() * kCells);
  for (const Scene& scene : scenes) {
    for (const SceneCell& cell : LabelCells(scene)) {
      switch (cell.kind) {
        case SceneCell::Kind::kBackground:
          ids.push_back(words_.backgrounds[cell.index]);
          break;
        case SceneCell::Kind::kPart:
          ids.push_back(words_.part);
          break;
        case SceneCell::Kind::kCentre:
          if (words_.categories[cell.index] < 0) {
            throw std::invalid_argument("the map of a scene with \"" +
                                        Categories()[cell.index].name +
                                        "\", which is not one piece of the tokenizer");
          }
          centres.push_back(static_cast<int64_t>(ids.size()));
          sizes.push_back(cell.big ? words_.big : words_.small);
          ids.push_back(words_.categories[cell.index]);
          break;
      }
    }
  }
  const auto cells = static_cast<int64_t>(ids.size());
  ids.insert(ids.end(), sizes.begin(), sizes.end());
  const at::Tensor all = decoder.Embed(at::tensor(ids, at::kLong));
  const at::Tensor words = all.narrow(0, 0, cells), size_words = all.narrow(0, cells, sizes.size());
  const at::Tensor index = at::tensor(centres, at::kLong).to(all.device());
  return words.index_add(0, index, size_words, kSizeShare)
      .view({static_cast<int64_t>(scenes.size()), kCells, all.size(1)});
}

at::Tensor TextMap::WithPlaces(const at::Tensor& words) const {
  const at::Tensor rows = parameters_[0].second, columns = parameters_[1].second;
  const at::Tensor places = (rows.unsqueeze(1) + columns.unsqueeze(0)).flatten(0, 1);
  return words + places.to(words.options());
}

}  // namespace llava
