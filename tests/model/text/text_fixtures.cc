#include "tests/model/text/text_fixtures.h"

#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {

nlohmann::json ExpectedJson(const std::string& name) {
  return nlohmann::json::parse(ReadBytes(FixturesDir() / "expected" / name));
}

Tokenizer FixtureTokenizer(bool legacy) {
  TokenizerOptions options;
  options.legacy = legacy;
  return Tokenizer(ReadBytes(FixturesDir() / "orig-f32" / "tokenizer.model"), options);
}

std::string OddText(std::mt19937& random, bool broken, const std::vector<std::string>& extra) {
  static const std::vector<std::string> parts = {"the",
                                                 "picture",
                                                 " shows",
                                                 "USER",
                                                 "ing",
                                                 "e",
                                                 "A",
                                                 "Z",
                                                 "q",
                                                 "0",
                                                 "42",
                                                 "3.14",
                                                 ",",
                                                 ".",
                                                 "?",
                                                 "#",
                                                 "###",
                                                 "<",
                                                 ">",
                                                 "/",
                                                 "s",
                                                 " ",
                                                 "  ",
                                                 "     ",
                                                 "\t",
                                                 "\xC2\xA0",
                                                 "\xE3\x80\x80",
                                                 "\xE2\x80\x8B",
                                                 "▁",
                                                 "▁▁",
                                                 "é",
                                                 "e\xCC\x81",
                                                 "ß",
                                                 "Ł",
                                                 "ﬁ",
                                                 "ＵＳＥＲ：",
                                                 "①",
                                                 "½",
                                                 "ｶﾞ",
                                                 "日本語",
                                                 "漢",
                                                 "Привет",
                                                 "مرحبا",
                                                 "Ελλάδα",
                                                 "🙂",
                                                 "👩‍👩‍👧‍👦",
                                                 "🏳️‍🌈",
                                                 "\xEF\xBB\xBF",
                                                 "\xEF\xBF\xBD",
                                                 "\x01",
                                                 "\x7F",
                                                 "\xC2\x85",
                                                 "\xE2\x80\xA8",
                                                 "⁇",
                                                 "한국",
                                                 "\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB",
                                                 "ǅ",
                                                 "İ",
                                                 "\xF4\x8F\xBF\xBF"};
  static const std::vector<std::string> bad = {
      "\x80",        "\xBF",         "\xFF",         "\xC0\xAF",         "\xC3",
      "\xE2\x96",    "\xED\xA0\x80", "\xF0\x9F\x99", "\xF4\x90\x80\x80", "\xF8\x88\x80\x80\x80",
      "\xE0\x80\xAF"};
  auto pick = [&random](const auto& from) { return from[random() % from.size()]; };
  std::string text;
  for (size_t n = random() % 24; n > 0; --n) {
    const unsigned dice = random() % 20;
    if (dice == 0 && broken) {
      text += pick(bad);
    } else if (dice <= 2 && !extra.empty()) {
      text += pick(extra);
    } else if (dice <= 4) {
      text += static_cast<char>(' ' + random() % 95);
    } else {
      text += pick(parts);
    }
  }
  return text;
}

}  // namespace llava
