// Tokenizers and checkpoint folders: tokenizer.model, tokenizer_config.json, added_tokens.json,
// tokenizer.json.

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <system_error>

#include <nlohmann/json.hpp>

#include "model/text/json_text.h"
#include "model/text/tokenizer_impl.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Ours: whether pictures are special tokens within a text (TokenizerOptions::image_inline).
constexpr char kImageInlineKey[] = "llava_image_inline";
// Ours: TokenizerOptions::prefix_after_special, absent if it is false.
constexpr char kPrefixAfterSpecialKey[] = "llava_prefix_after_special";

std::optional<std::string> ReadFile(const fs::path& path) {
  if (!fs::exists(path)) return std::nullopt;
  std::ifstream in(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return bytes;
}

[[noreturn]] void Refuse(const std::string& where, const char* expected, const json& found) {
  throw std::runtime_error(where + ": expected " + expected + ", found " + found.type_name());
}

const json& Object(const json& value, const std::string& where) {
  if (!value.is_object()) Refuse(where, "an object", value);
  return value;
}

const std::string& Text(const json& value, const std::string& where) {
  if (!value.is_string()) Refuse(where, "a text", value);
  return value.get_ref<const std::string&>();
}

// The text in {"content": "</s>"}.
const std::string& Content(const json& token, const std::string& where) {
  const auto content = Object(token, where).find("content");
  if (content == token.end()) throw std::runtime_error(where + ": \"content\" is missing");
  return Text(*content, where + ".content");
}

// A boolean setting; null counts as missing.
bool Flag(const json& config, const char* key, bool otherwise) {
  auto it = config.find(key);
  if (it == config.end() || it->is_null()) return otherwise;
  if (!it->is_boolean()) Refuse(key, "true or false", *it);
  return it->get<bool>();
}

void AddToken(TokenizerOptions& options, const Tokenizer& plain, const std::string& text,
              int64_t id) {
  // The model file has these already.
  const bool own = id == plain.unk_id() || id == plain.bos_id() || id == plain.eos_id();
  if (own && plain.IdOf(text) == id) return;
  if (id < 0 || id >= INT32_MAX) {  // one more is the size of the vocabulary
    throw std::runtime_error("added token \"" + text + "\" has the impossible id " +
                             std::to_string(id));
  }
  options.added_tokens.emplace_back(text, static_cast<int32_t>(id));
}

// The text of "</s>" or {"content": "</s>"}; empty if there is none.
std::string TokenText(const json& config, const char* key) {
  auto it = config.find(key);
  if (it == config.end() || it->is_null()) return "";
  return it->is_object() ? Content(*it, key) : Text(*it, key);
}

void RefuseUnsupported(const json& config, const Tokenizer& plain) {
  if (Flag(config, "add_eos_token", false)) {
    throw std::runtime_error("add_eos_token is not supported: prompts must not end with it");
  }
  if (!Flag(config, "add_prefix_space", true)) {
    throw std::runtime_error("add_prefix_space = false is not supported");
  }
  const std::pair<const char*, int32_t> tokens[] = {
      {"unk_token", plain.unk_id()}, {"bos_token", plain.bos_id()}, {"eos_token", plain.eos_id()}};
  for (const auto& [key, id] : tokens) {
    const std::string text = TokenText(config, key);  // empty in some early conversions
    if (key == std::string_view("eos_token") && plain.IdOf(text) >= 0) continue;
    if (!text.empty() && plain.IdOf(text) != id) {
      throw std::runtime_error(std::string(key) + " is \"" + text + "\", but tokenizer.model has " +
                               (id < 0 ? "none" : "\"" + plain.TokenBytes(id) + "\"") +
                               "; another one is not supported");
    }
  }
}

void ReadConfig(const json& config, const Tokenizer& plain, TokenizerOptions& options) {
  RefuseUnsupported(config, plain);
  const std::string eos = TokenText(config, "eos_token");
  if (!eos.empty() && plain.IdOf(eos) != plain.eos_id()) options.eos_piece = eos;
  options.legacy = Flag(config, "legacy", true);
  options.add_bos = Flag(config, "add_bos_token", true);
  options.prefix_after_special = Flag(config, kPrefixAfterSpecialKey, false);
  if (auto added = config.find("added_tokens_decoder");
      added != config.end() && !added->is_null()) {
    for (const auto& [id, token] : Object(*added, "added_tokens_decoder").items()) {
      const std::string& content = Content(token, "added_tokens_decoder." + id);
      for (const char* key : {"lstrip", "rstrip", "single_word"}) {
        if (Flag(token, key, false)) {
          throw std::runtime_error(std::string(key) + " of added token " + id +
                                   " is not supported");
        }
      }
      int64_t number = -1;
      const auto parsed = std::from_chars(id.data(), id.data() + id.size(), number);
      if (parsed.ec != std::errc() || parsed.ptr != id.data() + id.size()) {
        throw std::runtime_error("key \"" + id + "\" of added_tokens_decoder is no token id");
      }
      AddToken(options, plain, content, number);
    }
  }
}

// The steps at `key` of a tokenizer.json: none, one, or those of a Sequence under `list`.
std::vector<json> Steps(const json& file, const std::string& key, const char* list) {
  const auto found = file.find(key);
  if (found == file.end() || found->is_null()) return {};
  if (Text(Object(*found, key).value("type", json()), key + ".type") != "Sequence") return {*found};
  const json steps = found->value(list, json());
  if (!steps.is_array()) Refuse(key + "." + list, "a list", steps);
  for (const json& step : steps) {
    Text(Object(step, key + "." + list).value("type", json()), key + "." + list + ".type");
  }
  return steps;
}

// Where the fast tokenizer has dummy prefixes. It is made by the `legacy` of the time, by other
// rules in each release of transformers, and then goes by itself: `legacy` beside it says nothing.
void ReadPrefixes(const json& file, bool model_prepends, TokenizerOptions& options) {
  for (const json& step : Steps(file, "normalizer", "normalizers")) {
    if (step["type"] != "Prepend") continue;
    const std::string prefix = Text(step.value("prepend", json()), "normalizer.prepend");
    if (prefix != kSpaceMark) {
      throw std::runtime_error("normalizer prepends \"" + prefix + "\"; \"" +
                               std::string(kSpaceMark) + "\" is supported");
    }
    options.legacy = true;  // in front of every text between special tokens
    options.prefix_after_special = !model_prepends;
    return;
  }
  for (const json& step : Steps(file, "pre_tokenizer", "pretokenizers")) {
    if (step["type"] != "Metaspace") continue;
    std::string scheme = Flag(step, "add_prefix_space", true) ? "always" : "never";  // older files
    if (step.contains("prepend_scheme") && !step["prepend_scheme"].is_null()) {
      scheme = Text(step["prepend_scheme"], "pre_tokenizer.prepend_scheme");
    }
    if (scheme != "first" && scheme != "always") {
      throw std::runtime_error("prepend_scheme of pre_tokenizer is \"" + scheme +
                               "\"; first and always are supported");
    }
    options.legacy = false;
    options.prefix_after_special = scheme == "always";
    return;
  }
}

}  // namespace

Tokenizer Tokenizer::Load(const fs::path& folder) {
  fs::path path = folder / "tokenizer.model";
  try {
    std::optional<std::string> model = ReadFile(path);
    if (!model) {
      throw std::runtime_error(
          "there is no such file; a SentencePiece model is needed (a "
          "tokenizer.json alone cannot be read)");
    }
    const Tokenizer plain(*model, {});
    TokenizerOptions options;
    std::optional<bool> image_inline;
    path = folder / "tokenizer_config.json";
    if (std::optional<std::string> text = ReadFile(path)) {
      const json config = ParseJson<json>(*text);
      ReadConfig(Object(config, "the file"), plain, options);
      if (const auto inline_images = config.find(kImageInlineKey);
          inline_images != config.end() && !inline_images->is_null()) {
        image_inline = Flag(config, kImageInlineKey, false);
      }
    }
    path = folder / "added_tokens.json";
    if (std::optional<std::string> text = ReadFile(path)) {
      const json added = ParseJson<json>(*text);
      for (const auto& [token, id] : Object(added, "the file").items()) {
        if (!id.is_number_integer()) Refuse("the id of \"" + token + "\"", "an integer", id);
        AddToken(options, plain, token, id.get<int64_t>());
      }
    }
    const auto& added = options.added_tokens;
    options.image_inline = image_inline.value_or(std::any_of(
        added.begin(), added.end(), [](const auto& token) { return token.first == kImageMark; }));
    if (options.image_inline && !image_inline) {
      path = folder / "tokenizer.json";
      if (std::optional<std::string> text = ReadFile(path)) {
        const json fast = ParseJson<json>(*text);
        ReadPrefixes(Object(fast, "the file"), plain.impl_->model->proto().add_dummy_prefix,
                     options);
      }
    }
    path = folder;
    return Tokenizer(
        std::make_unique<Impl>(plain.impl_->model_bytes, plain.impl_->model, std::move(options)));
  } catch (const std::exception& e) {
    throw std::runtime_error(path.string() + ": " + e.what());
  }
}

std::string Tokenizer::Impl::ConfigJson() const {
  auto entry = [](const std::string& text) {
    return json{{"content", text},     {"lstrip", false},      {"rstrip", false},
                {"normalized", false}, {"single_word", false}, {"special", true}};
  };
  json config = {{"tokenizer_class", "LlamaTokenizer"},   {"legacy", options.legacy},
                 {"add_bos_token", options.add_bos},      {"add_eos_token", false},
                 {"clean_up_tokenization_spaces", false}, {kImageInlineKey, options.image_inline},
                 {"added_tokens_decoder", json::object()}};
  if (options.prefix_after_special) config[kPrefixAfterSpecialKey] = true;
  auto add_own = [&](const char* key, int32_t id) {
    if (id < 0) return;
    const std::string& text = model->proto().pieces[id].text;
    config[key] = text;
    config["added_tokens_decoder"][std::to_string(id)] = entry(text);
  };
  add_own("unk_token", model->unk_id());
  add_own("bos_token", bos_id);
  add_own("eos_token", eos_id);
  for (const auto& [text, id] : options.added_tokens) {
    config["added_tokens_decoder"][std::to_string(id)] = entry(text);
  }
  return config.dump(1) + "\n";
}

}  // namespace llava
