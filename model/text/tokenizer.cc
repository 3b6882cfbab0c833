#include "model/text/tokenizer.h"

#include <stdexcept>

#include "model/text/prompt_encoder.h"
#include "model/text/tokenizer_impl.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

std::vector<int32_t> IdsOf(const std::vector<TokenRange>& ranges) {
  std::vector<int32_t> ids;
  ids.reserve(ranges.size());
  for (const TokenRange& range : ranges) ids.push_back(range.id);
  return ids;
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(std::string_view model_proto, TokenizerOptions options)
    : impl_(std::make_unique<Impl>(std::make_shared<const std::string>(model_proto),
                                   std::make_shared<const PieceModel>(ParseModelProto(model_proto)),
                                   std::move(options))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::WithSpecialPieces(std::span<const std::string> pieces) const {
  TokenizerOptions options = impl_->options;
  std::string unknown;
  for (const std::string& piece : pieces) {
    const int32_t id = IdOf(piece);
    if (id < 0) unknown += " \"" + piece + "\"";
    if (id >= 0 && id < static_cast<int32_t>(impl_->model->size())) {
      options.added_tokens.emplace_back(piece, id);
    }
  }
  if (!unknown.empty()) {
    throw std::invalid_argument(
        "the chat template wants special pieces that tokenizer.model lacks:" + unknown);
  }
  return Tokenizer(std::make_unique<Impl>(impl_->model_bytes, impl_->model, std::move(options)));
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  const PromptSpan span{PromptSpan::Kind::kTemplate, std::string(text), {}};
  return EncodePrompt(std::span(&span, 1));
}

std::vector<int32_t> Tokenizer::EncodePieces(std::string_view text) const {
  std::vector<TokenRange> ranges;
  const PieceModel& model = *impl_->model;
  model.Encode(text, model.proto().add_dummy_prefix, impl_->everything, 0, ranges);
  return IdsOf(ranges);
}

std::vector<TokenRange> Tokenizer::EncodeRanges(std::span<const PromptSpan> spans) const {
  return PromptEncoder(*impl_->model, impl_->specials, impl_->no_specials, impl_->options)
      .Encode(spans, impl_->options.add_bos ? impl_->bos_id : -1);
}

std::vector<int32_t> Tokenizer::EncodePrompt(std::span<const PromptSpan> spans) const {
  return IdsOf(EncodeRanges(spans));
}

std::vector<int32_t> Tokenizer::EncodeWithImageMarks(std::string_view text) const {
  return EncodePrompt(SplitImageMarks(text));
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  bool first = true;
  for (int32_t id : ids) {
    if (skip_special && IsSpecial(id)) continue;
    bytes += impl_->TextBytes(id, first);
  }
  std::string text = TakeWholeUtf8(bytes);
  if (!bytes.empty()) text += kReplacementCharacter;
  return text;
}

std::string Tokenizer::TokenBytes(int32_t id) const {
  bool first = false;
  return impl_->TextBytes(id, first);
}

bool Tokenizer::IsSpecial(int32_t id) const { return impl_->IsSpecial(id); }

int32_t Tokenizer::IdOf(std::string_view piece) const {
  if (auto it = impl_->added_ids.find(std::string(piece)); it != impl_->added_ids.end()) {
    return it->second;
  }
  return impl_->model->IdOf(piece);
}

int32_t Tokenizer::bos_id() const { return impl_->bos_id; }
int32_t Tokenizer::eos_id() const { return impl_->eos_id; }
int32_t Tokenizer::unk_id() const { return impl_->model->unk_id(); }
int32_t Tokenizer::vocab_size() const { return impl_->vocab_size; }
const TokenizerOptions& Tokenizer::options() const { return impl_->options; }
const Sha256Digest& Tokenizer::digest() const { return impl_->digest; }
std::string_view Tokenizer::model_bytes() const { return *impl_->model_bytes; }
std::string Tokenizer::ConfigJson() const { return impl_->ConfigJson(); }

std::vector<PromptSpan> SplitImageMarks(std::string_view text) {
  std::vector<PromptSpan> spans;
  for (;;) {
    const size_t mark = text.find(kImageMark);
    if (mark != 0) {
      spans.push_back({PromptSpan::Kind::kTemplate, std::string(text.substr(0, mark)), {}});
    }
    if (mark == text.npos) return spans;
    spans.push_back({PromptSpan::Kind::kImage, std::string(kImageMark), {}});
    text.remove_prefix(mark + kImageMark.size());
  }
}

std::string StreamDecoder::Push(int32_t id) {
  if (tokenizer_->IsSpecial(id)) return "";
  pending_ += tokenizer_->impl_->TextBytes(id, first_);
  return TakeWholeUtf8(pending_);
}

std::string StreamDecoder::Flush() {
  if (pending_.empty()) return "";
  pending_.clear();
  return std::string(kReplacementCharacter);
}

}  // namespace llava
