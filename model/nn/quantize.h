#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/language_draft.h"
#include "model/nn/packed_weights.h"
#include "model/ops/cpu/thread_pool.h"

namespace llava {

// Publishes `checkpoint` as PublishLanguage does, with its decoder packed: the embedding in
// bfloat16, norms, projector and self-test as they are. In memory is one layer at a time.
// `step(done, total)` is called after every part; when it returns false, all that was written is
// removed again and nothing is returned. `make_self_test`: as LanguageDraft::Publish. Throws as
// PublishLanguage and PackDecoder.
std::optional<std::filesystem::path> PublishPacked(
    const LanguageCheckpoint& checkpoint, const PackOptions& options,
    const std::filesystem::path& root, const std::string& name, const std::string& recipe,
    ops::cpu::ThreadPool& pool, const std::function<bool(int64_t done, int64_t total)>& step,
    const LanguageDraft::SelfTestMaker& make_self_test = {});

}  // namespace llava
