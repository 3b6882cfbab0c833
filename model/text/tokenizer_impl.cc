#include "model/text/tokenizer_impl.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <tuple>

namespace llava {

Tokenizer::Impl::Impl(std::shared_ptr<const std::string> bytes,
                      std::shared_ptr<const PieceModel> pieces, TokenizerOptions given)
    : model_bytes(std::move(bytes)), model(std::move(pieces)), options(std::move(given)) {
  auto& added = options.added_tokens;
  std::sort(added.begin(), added.end(), [](const auto& a, const auto& b) {
    return std::tie(a.second, a.first) < std::tie(b.second, b.first);
  });
  added.erase(std::unique(added.begin(), added.end()), added.end());

  using Type = ModelProto::PieceType;
  auto control_id = [this](const std::string& text) {
    const int32_t id = model->IdOf(text);
    return id >= 0 && model->TypeOf(id) == Type::kControl ? id : -1;
  };
  bos_id = control_id(model->proto().bos_piece);
  eos_id = control_id(model->proto().eos_piece);
  vocab_size = static_cast<int32_t>(model->size());
  std::vector<int32_t> blocked;
  std::map<std::string_view, int32_t> literals;
  auto add_special = [&](const std::string& text, int32_t id) {
    literals.emplace(text, id);
    if (id < static_cast<int32_t>(model->size())) blocked.push_back(id);
  };
  add_special(model->proto().pieces[model->unk_id()].text, model->unk_id());
  if (bos_id >= 0) add_special(model->proto().bos_piece, bos_id);
  if (eos_id >= 0) add_special(model->proto().eos_piece, eos_id);
  if (!options.eos_piece.empty()) {
    eos_id = model->IdOf(options.eos_piece);
    if (eos_id < 0) {
      throw std::runtime_error("end token \"" + options.eos_piece +
                               "\" is no piece of tokenizer.model");
    }
    add_special(options.eos_piece, eos_id);
  }
  for (const auto& [text, id] : added) {
    auto fail = [&text = text, id = id](const std::string& why) {
      throw std::runtime_error("added token \"" + text + "\" with id " + std::to_string(id) + ": " +
                               why);
    };
    if (text.empty()) fail("its text is empty");
    if (id < 0) fail("ids are not negative");
    if (id < static_cast<int32_t>(model->size()) && model->proto().pieces[id].text != text) {
      fail("tokenizer.model has piece \"" + model->proto().pieces[id].text + "\" there");
    }
    if (!added_ids.emplace(text, id).second) fail("the text has another id too");
    if (!added_texts.emplace(id, text).second) fail("the id has another text too");
    if (id >= static_cast<int32_t>(model->size()) && model->IdOf(text) >= 0) {
      fail("tokenizer.model has this piece as id " + std::to_string(model->IdOf(text)));
    }
    add_special(text, id);
    vocab_size = std::max(vocab_size, id + 1);
  }
  specials = Trie(Trie::Entries(literals.begin(), literals.end()));
  for (size_t i = 0; i < model->size(); ++i) {  // no text may ever become one of these
    if (model->TypeOf(static_cast<int32_t>(i)) == Type::kControl) {
      blocked.push_back(static_cast<int32_t>(i));
    }
  }
  everything = model->MakeFilter({});
  no_specials = model->MakeFilter(blocked);

  Sha256 hash;
  hash.Update(*model_bytes);
  hash.Update(ConfigJson());
  digest = hash.Finish();
}

void Tokenizer::Impl::CheckId(int32_t id) const {
  if (id < 0 || id >= vocab_size) {
    throw std::out_of_range("token id " + std::to_string(id) +
                            " is not in the vocabulary (ids 0 to " +
                            std::to_string(vocab_size - 1) + ")");
  }
}

bool Tokenizer::Impl::IsGap(int32_t id) const {
  return id >= static_cast<int32_t>(model->size()) && !added_texts.count(id);
}

bool Tokenizer::Impl::IsSpecial(int32_t id) const {
  CheckId(id);
  if (added_texts.count(id) || IsGap(id) || id == eos_id) return true;
  const ModelProto::PieceType type = model->TypeOf(id);
  return type == ModelProto::PieceType::kControl || type == ModelProto::PieceType::kUnknown;
}

std::string Tokenizer::Impl::TextBytes(int32_t id, bool& first) const {
  CheckId(id);
  if (auto added = added_texts.find(id); added != added_texts.end()) {
    first = false;
    return added->second;
  }
  if (IsGap(id)) return "";
  if (auto byte = model->ByteOf(id)) {
    first = false;
    return std::string(1, static_cast<char>(*byte));
  }
  std::string_view piece = model->proto().pieces[id].text;
  std::string text;
  for (size_t mark; (mark = piece.find(kSpaceMark)) != piece.npos;) {
    text.append(piece.substr(0, mark)).push_back(' ');
    piece.remove_prefix(mark + kSpaceMark.size());
  }
  text += piece;
  const ModelProto& proto = model->proto();
  if (first) {
    const bool prefixed = proto.add_dummy_prefix || proto.remove_extra_whitespaces ||
                          !options.legacy || options.prefix_after_special;
    if (prefixed && text.starts_with(' ')) text.erase(0, 1);
    // A model that removes extra spaces has none at the start, however many pieces they take.
    first = proto.remove_extra_whitespaces && text.empty();
  }
  return text;
}

}  // namespace llava
