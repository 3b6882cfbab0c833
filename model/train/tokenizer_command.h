#pragma once

// `llava-train tokenizer`: trains a SentencePiece tokenizer for a small model.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace llava {

struct TokenizerCommand {
  std::filesystem::path output;  // folder; made if missing
  // Plain text, one sentence a line, or LLaVA's JSON (*.json), whose messages are taken. None: text
  // about scenes, built in.
  std::vector<std::filesystem::path> texts;
  int64_t vocabulary = 1000;  // pieces, those of bytes and symbols included
  int num_categories = 48;    // of the built-in text
  int64_t scenes = 6000;      // that it is about
  uint64_t seed = 42;
  std::string chat_template = "emoji";  // its special pieces become symbols
};

struct TokenizerSummary {
  int64_t vocabulary = 0, lines = 0;
  double tokens_per_word = 0;  // of the text
};

// Runs SentencePiece's spm_train and writes tokenizer.model and tokenizer_config.json, which
// Tokenizer::Load reads. Throws std::invalid_argument for a text that is missing or broken, and
// std::runtime_error if spm_train is not installed or fails, or a word of SceneWords did not become
// one piece (built-in text only).
TokenizerSummary TrainTokenizer(const TokenizerCommand& command);

}  // namespace llava
