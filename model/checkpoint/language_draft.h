#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/version_draft.h"

namespace llava {

// Publishes a language model whose tensors need not be in memory together: they come in parts, and
// each part becomes a safetensors file. One thread.
class LanguageDraft {
 public:
  // As PublishLanguage. Nothing is left behind unless Publish returns.
  LanguageDraft(const std::filesystem::path& root, const std::string& name,
                const std::string& recipe);

  // Writes tensors that are in no part before, under canonical names.
  void Add(const std::map<std::string, at::Tensor>& tensors);
  // `about`: all of the model but its tensors. Throws std::runtime_error if those that were added
  // do not fit its configuration. `make_self_test` is asked for one, of the model as it was
  // written, if `about` has none. Returns the new folder.
  using SelfTestMaker = std::function<std::optional<SelfTest>(const LanguageCheckpoint& written)>;
  std::filesystem::path Publish(const LanguageCheckpoint& about,
                                const SelfTestMaker& make_self_test = {});

 private:
  std::string name_;
  VersionDraft draft_;
  int parts_ = 0;
  uint64_t bytes_ = 0;
  std::map<std::string, std::string> file_of_;  // by tensor
};

}  // namespace llava
