// Tokenizer as a tokenizer.json: what transformers' fast tokenizers encode by. Written, not read.

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "model/text/normalizer.h"
#include "model/text/tokenizer_impl.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

using nlohmann::json;
using Type = ModelProto::PieceType;

std::string Base64(std::string_view bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; ++k) {
      bits = bits << 8 | (k < count ? static_cast<uint8_t>(bytes[i + k]) : 0);
    }
    for (size_t k = 0; k < 4; ++k) text += k > count ? '=' : kDigits[bits >> (18 - 6 * k) & 63];
  }
  return text;
}

// sentencepiece has scores of pieces, the other library an order of merges: every way to make a
// piece of two, the best piece first.
json MergesOf(const std::vector<ModelProto::Piece>& pieces) {
  std::unordered_map<std::string_view, int32_t> ids;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].type == Type::kNormal) ids[pieces[i].text] = static_cast<int32_t>(i);
  }
  std::vector<std::tuple<float, int32_t, size_t>> merges;  // -score, piece, where it is cut
  for (const auto& [piece, id] : ids) {
    for (size_t cut = Utf8SizeByLead(piece[0]); cut < piece.size();
         cut += Utf8SizeByLead(piece[cut])) {
      if (!ids.contains(piece.substr(0, cut)) || !ids.contains(piece.substr(cut))) continue;
      merges.emplace_back(-pieces[id].score, id, cut);
    }
  }
  std::sort(merges.begin(), merges.end());
  json list = json::array();
  for (const auto& [score, id, cut] : merges) {
    list.push_back({pieces[id].text.substr(0, cut), pieces[id].text.substr(cut)});
  }
  return list;
}

json ModelOf(const ModelProto& proto, int32_t unk_id) {
  if (proto.model_type == ModelProto::ModelType::kUnigram) {
    json vocab = json::array();
    for (const auto& piece : proto.pieces) vocab.push_back({piece.text, piece.score});
    return {{"type", "Unigram"},
            {"unk_id", unk_id},
            {"byte_fallback", proto.byte_fallback},
            {"vocab", std::move(vocab)}};
  }
  json vocab = json::object();
  for (size_t i = 0; i < proto.pieces.size(); ++i) vocab[proto.pieces[i].text] = i;
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", proto.pieces[unk_id].text},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", true},
          {"byte_fallback", proto.byte_fallback},
          {"ignore_merges", false},
          {"vocab", std::move(vocab)},
          {"merges", MergesOf(proto.pieces)}};
}

json Sequence(const char* key, json steps) { return {{"type", "Sequence"}, {key, steps}}; }

json Replace(const char* kind, std::string_view pattern, std::string_view content) {
  return {{"type", "Replace"}, {"pattern", {{kind, pattern}}}, {"content", content}};
}

}  // namespace

std::string Tokenizer::FastJson() const {
  const PieceModel& model = *impl_->model;
  const ModelProto& proto = model.proto();
  const TokenizerOptions& options = impl_->options;
  json added = json::array();
  const auto add = [&added](int32_t id, const std::string& text, bool special) {
    added.push_back({{"id", id},
                     {"content", text},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", special}});
  };
  for (int32_t id = 0; id < static_cast<int32_t>(model.size()); ++id) {
    const Type type = model.TypeOf(id);
    const bool special =
        id == impl_->eos_id || type == Type::kControl || impl_->added_texts.contains(id);
    if (special || type == Type::kUnknown || type == Type::kUserDefined) {
      add(id, proto.pieces[id].text, special || type == Type::kUnknown);
    }
  }
  for (const auto& [text, id] : options.added_tokens) {
    if (id >= static_cast<int32_t>(model.size())) add(id, text, true);
  }

  json normalizers = json::array();
  if (!proto.precompiled_charsmap.empty()) {
    normalizers.push_back(
        {{"type", "Precompiled"}, {"precompiled_charsmap", Base64(proto.precompiled_charsmap)}});
  }
  if (proto.remove_extra_whitespaces) {
    normalizers.push_back({{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}});
    normalizers.push_back(Replace("Regex", " {2,}", " "));
  }
  json pre_tokenizer;  // null
  if (options.legacy) {
    if (proto.add_dummy_prefix || options.prefix_after_special) {
      normalizers.push_back({{"type", "Prepend"}, {"prepend", kSpaceMark}});
    }
    normalizers.push_back(Replace("String", " ", kSpaceMark));
  } else {
    pre_tokenizer = {{"type", "Metaspace"},
                     {"replacement", kSpaceMark},
                     {"prepend_scheme", options.prefix_after_special ? "always" : "first"},
                     {"split", false}};
  }
  json single = json::array(), pair = json::array(), special_tokens = json::object();
  const auto part = [&](const char* name, int type) {
    if (options.add_bos && impl_->bos_id >= 0) {
      const std::string& bos = proto.bos_piece;
      special_tokens[bos] = {{"id", bos}, {"ids", {impl_->bos_id}}, {"tokens", {bos}}};
      pair.push_back({{"SpecialToken", {{"id", bos}, {"type_id", type}}}});
    }
    pair.push_back({{"Sequence", {{"id", name}, {"type_id", type}}}});
  };
  part("A", 0);
  single = pair;
  part("B", 1);
  json decoders = {Replace("String", kSpaceMark, " "), {{"type", "ByteFallback"}}};
  decoders.push_back({{"type", "Fuse"}});
  if (proto.add_dummy_prefix || !options.legacy || options.prefix_after_special) {
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  const json file = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", normalizers.empty() ? json() : Sequence("normalizers", normalizers)},
      {"pre_tokenizer", pre_tokenizer},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single", single},
        {"pair", pair},
        {"special_tokens", special_tokens}}},
      {"decoder", Sequence("decoders", decoders)},
      {"model", ModelOf(proto, model.unk_id())}};
  return file.dump(1) + "\n";
}

}  // namespace llava
