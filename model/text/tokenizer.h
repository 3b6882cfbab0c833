#pragma once

// Text <-> token ids by a SentencePiece `tokenizer.model` (BPE or unigram), with LLaMA's rules for
// special tokens and dummy prefixes. Own reader: no sentencepiece library in the process.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/digest/sha256.h"

namespace llava {

// Stands for one picture in a list of token ids (the published code's IMAGE_TOKEN_INDEX).
inline constexpr int32_t kImageToken = -200;
// And in a text.
inline constexpr std::string_view kImageMark = "<image>";

// A stretch of a prompt.
struct PromptSpan {
  enum class Kind {
    kTemplate,  // text in which special tokens are recognised
    kUser,      // text of a stranger: "</s>" in it is five ordinary characters
    kImage,     // one picture; text around it is tokenized apart
    kTokens,    // ids used verbatim (an earlier answer)
  };
  Kind kind = Kind::kTemplate;
  std::string text;
  std::vector<int32_t> tokens;
};

struct TokenizerOptions {
  bool add_bos = true;
  // transformers' `legacy`: the text after a special token gets a dummy prefix of its own.
  bool legacy = true;
  // True: an image mark is a special token inside one text, and without `legacy` a text that begins
  // with a space gets no dummy prefix (llava-hf, transformers' fast tokenizer). False: the
  // stretches around it are texts of their own (original LLaVA).
  bool image_inline = false;
  // Without `legacy`: the text after a special token begins as the text at the start does
  // (`prepend_scheme` "always" of a tokenizer.json). With it: these texts get their prefixes
  // although the model file wants none (`Prepend` of a tokenizer.json).
  bool prefix_after_special = false;
  // A piece that is the end token in place of the model file's; empty: that one.
  std::string eos_piece = {};
  // Beside unk, bos and eos: literal text and id, e.g. {"<pad>", 32001}.
  std::vector<std::pair<std::string, int32_t>> added_tokens;
};

// A token and the bytes [begin, end) of the source text that it stands for. A dummy prefix has no
// bytes of its own; the byte pieces of one character all have the bytes of that character.
struct TokenRange {
  int32_t id;
  size_t begin, end;
};

// Const after construction, thread-safe.
class Tokenizer {
 public:
  // `model_proto`: bytes of tokenizer.model. Throws std::runtime_error if it is not one or if an
  // added token contradicts it.
  Tokenizer(std::string_view model_proto, TokenizerOptions options);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // Reads tokenizer.model, tokenizer_config.json (legacy, add_bos_token, eos_token,
  // added_tokens_decoder) and added_tokens.json of a checkpoint folder; files other than
  // tokenizer.model may be missing. Pictures are inline if "<image>" is an added token, unless the
  // key of ConfigJson says otherwise; then tokenizer.json, if there is one, tells where dummy
  // prefixes stand, as it does for the programs that such a folder was made for. Throws
  // std::runtime_error naming the file, and for settings that are not supported.
  static Tokenizer Load(const std::filesystem::path& folder);
  // The same tokenizer with these pieces as special tokens too (ChatTemplate::special_pieces).
  // Throws std::invalid_argument naming the texts that are no pieces.
  Tokenizer WithSpecialPieces(std::span<const std::string> pieces) const;

  // What to write into a checkpoint folder so that Load gives this tokenizer again: the contents of
  // tokenizer.model and tokenizer_config.json.
  std::string_view model_bytes() const;
  std::string ConfigJson() const;
  // The same for programs that read a tokenizer.json (transformers' fast tokenizers). Pictures are
  // special tokens inside one text there, whatever image_inline says. Of what ids it gives, Load
  // reads nothing but the dummy prefixes.
  std::string FastJson() const;

  // One text with special tokens recognised; BOS first if add_bos. "<image>" is text here unless it
  // is an added token.
  std::vector<int32_t> Encode(std::string_view text) const;
  // The pure SentencePiece encoding: dummy prefix as the model says, no specials, no BOS.
  std::vector<int32_t> EncodePieces(std::string_view text) const;
  // A whole prompt: BOS once, pictures as kImageToken.
  std::vector<int32_t> EncodePrompt(std::span<const PromptSpan> spans) const;
  // The same with the place of every token in the joined texts of the spans (BOS and the tokens of
  // a kTokens span have no bytes).
  std::vector<TokenRange> EncodeRanges(std::span<const PromptSpan> spans) const;
  // Splits `text` at every "<image>" and encodes it as a prompt of trusted text.
  std::vector<int32_t> EncodeWithImageMarks(std::string_view text) const;

  // Text of `ids`; the dummy prefix space at the start is dropped.
  std::string Decode(std::span<const int32_t> ids, bool skip_special = true) const;
  // The bytes a token adds to a text: "▁" as a space, byte pieces as their byte, the literal text
  // of special tokens, none for a gap (vocab_size). Throws std::out_of_range for an unknown id.
  std::string TokenBytes(int32_t id) const;
  bool IsSpecial(int32_t id) const;

  // Id of a piece or an added token, -1 if there is none.
  int32_t IdOf(std::string_view piece) const;
  int32_t bos_id() const;
  int32_t eos_id() const;
  int32_t unk_id() const;
  // One more than the largest id (pieces, added tokens). Gaps between ids count as special tokens.
  int32_t vocab_size() const;
  const TokenizerOptions& options() const;
  // Names the mapping: SHA-256 over model file and options.
  const Sha256Digest& digest() const;

 private:
  friend class StreamDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

// Splits `text` at every "<image>" into spans of trusted text and pictures.
std::vector<PromptSpan> SplitImageMarks(std::string_view text);

// Turns ids into text piece by piece; only whole UTF-8 characters come out. One thread.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  // The text that becomes complete with `id`; empty in the middle of a character and for special
  // tokens. A broken byte sequence gives U+FFFD once it is known to be broken.
  std::string Push(int32_t id);
  // What is left at the end: U+FFFD for an unfinished character, else nothing.
  std::string Flush();
  // Whether an unfinished character is waiting for its last bytes.
  bool pending() const { return !pending_.empty(); }

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;  // an unfinished character
  bool first_ = true;
};

}  // namespace llava
