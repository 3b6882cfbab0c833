// llava-model export: a checkpoint as a folder that transformers loads.
#include <cstdio>
#include <iostream>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/checkpoint_folder.h"
#include "model/checkpoint/hf_export.h"
#include "model/checkpoint/hf_files.h"
#include "model/checkpoint/version_folder.h"
#include "model/progress/progress.h"
#include "model/progress/stop_request.h"
#include "model/tools/commands.h"
#include "model/tools/find_tower.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

std::optional<at::ScalarType> DtypeNamed(const std::string& word) {
  static const std::map<std::string, at::ScalarType> kTypes = {
      {"float32", at::kFloat}, {"float16", at::kHalf}, {"bfloat16", at::kBFloat16}};
  if (word.empty()) return std::nullopt;
  return kTypes.at(word);
}

// What a reader of the folder cannot see.
void TellDifferences(const LanguageCheckpoint& language) {
  const ChatTemplate& chat = *language.chat_template;
  std::cout << "template " << chat.name()
            << (language.template_assumed ? " (assumed; llava-model publish --chat-template names "
                                            "another)\n"
                                          : "\n");
  for (const std::string& stop : chat.stop()) {
    const int32_t id = language.tokenizer->IdOf(stop);
    if (id >= 0 && language.tokenizer->IsSpecial(id)) continue;
    std::string text;
    for (const char c : stop) text += c == '\n' ? std::string("\\n") : std::string(1, c);
    std::cout << "note     \"" << text << "\" ends an answer, too: pass it as stop_strings\n";
  }
  const TokenizerOptions& options = language.tokenizer->options();
  if (!options.legacy && !options.image_inline) {
    std::cout
        << "note     in llava-hf the text behind an earlier answer begins with a space of its "
           "own, as that behind a picture does\n";
  }
  if (options.add_bos && language.tokenizer->bos_id() >= 0) {
    std::cout
        << "note     the template leaves the first token to the tokenizer: vLLM's chat API wants "
           "\"add_special_tokens\": true\n";
  }
}

}  // namespace

int RunExport(const ExportCommand& command) {
  OpenOptions options;
  // Every file is checked here, once. A packed decoder is refused by its own name.
  const CheckpointFolder folder = OpenCheckpointFolder(command.source, options);
  if (folder.is_tower()) {
    throw std::runtime_error(folder.path.string() +
                             ": is a vision tower; name the language model that reads it, whose "
                             "folder it becomes a part of");
  }
  options.verify = false;
  options.packed = true;
  if (!folder.manifest) options.tower = command.tower;
  std::optional<TowerCheckpoint> tower;
  const LanguageCheckpoint language = OpenLanguage(folder.path, options, &tower);
  CheckHfCanHold(language);  // before a tower is asked for
  if (!tower) {
    const fs::path model = ModelPath(folder.path).root;
    tower = OpenTowerOf(language, command.tower, ModelPath(model).root);
  }

  const StopRequest stop;
  std::optional<Progress> progress;
  HfExportOptions how;
  how.dtype = DtypeNamed(command.dtype);
  how.step = [&progress](uint64_t done, uint64_t total) {
    if (!progress) progress.emplace(stderr, "exporting", total);
    done < total ? progress->Update(done) : progress->Finish(done);
    return !StopRequest::Requested();
  };
  if (!ExportHf(language, *tower, command.folder, how)) {
    std::fprintf(stderr, "\nllava-model: stopped; nothing was written\n");
    return 128 + StopRequest::Signal();
  }
  std::cout << "exported " << command.folder.string() << "\n";
  TellDifferences(language);
  return 0;
}

}  // namespace llava
