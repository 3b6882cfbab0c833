#include "model/eval/vqa/vqa_accuracy.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <limits>
#include <map>
#include <sstream>
#include <stdexcept>

#include "model/text/ascii.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

constexpr std::string_view kPunctuation = ";/[]\"{}()=+\\_-><@`,?!";
constexpr int kMostFullStops = 32;  // that the published evaluation takes away

constexpr std::array<std::string_view, 12> kNumbers = {
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "none"};

// Words that people write without their apostrophes.
constexpr std::string_view kContractions =
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't "
    "mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've "
    "should've "
    "shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll "
    "someone's something'd something'd've something'll that's there'd there'd've there're there's "
    "they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're "
    "what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll "
    "why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've";

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// "couldnt've", "couldn'tve" and "couldntve" -> "couldn't've", and so on.
const std::map<std::string, std::string>& Contractions() {
  static const std::map<std::string, std::string> contractions = [] {
    std::map<std::string, std::string> made;
    std::istringstream words{std::string(kContractions)};
    for (std::string word; words >> word;) {
      const auto apostrophes = std::count(word.begin(), word.end(), '\'');
      // Bits tell which apostrophes stay; with all of them it is the word itself.
      for (int kept = 0; kept + 1 < 1 << apostrophes; ++kept) {
        std::string written;
        int number = 0;
        for (const char c : word) {
          if (c != '\'' || (kept >> number++ & 1)) written += c;
        }
        made.emplace(written, word);
      }
    }
    return made;
  }();
  return contractions;
}

// A comma between digits anywhere in the text decides over all its punctuation.
bool HasDigitComma(std::string_view text) {
  for (size_t i = 1; i + 1 < text.size(); ++i) {
    if (text[i] == ',' && IsDigit(text[i - 1]) && IsDigit(text[i + 1])) return true;
  }
  return false;
}

std::string WithoutPunctuation(std::string_view text) {
  const bool digit_comma = HasDigitComma(text);
  std::array<bool, 256> goes{}, becomes_space{};
  for (const char p : kPunctuation) {
    bool beside_space = false;
    for (size_t i = 0; i < text.size(); ++i) {
      beside_space |= text[i] == p && ((i > 0 && text[i - 1] == ' ') ||
                                       (i + 1 < text.size() && text[i + 1] == ' '));
    }
    const auto index = static_cast<unsigned char>(p);
    goes[index] = digit_comma || beside_space;
    becomes_space[index] = !goes[index];
  }
  std::string plain;
  for (const char c : text) {
    const auto index = static_cast<unsigned char>(c);
    if (!goes[index]) plain += becomes_space[index] ? ' ' : c;
  }
  // Full stops that no digit follows.
  std::string result;
  int stops = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const bool inner = i + 1 < plain.size() && IsDigit(plain[i + 1]);
    if (plain[i] == '.' && !inner && stops < kMostFullStops) {
      ++stops;
    } else {
      result += plain[i];
    }
  }
  return result;
}

std::string Spaced(std::string_view text) {
  std::string spaced(text);
  for (char& c : spaced) {
    if (c == '\n' || c == '\t') c = ' ';
  }
  return std::string(StripUtf8(spaced));
}

// As TextVQA's evaluation takes a text apart first.
std::string TextVqaWords(std::string_view text) {
  std::string words;
  for (const char c : Lowered(text)) {
    if (c != ',' && c != '?') words += c;
  }
  for (size_t at = 0; (at = words.find("'s", at)) != words.npos; at += 3) words.insert(at, 1, ' ');
  return std::string(StripUtf8(words));
}

std::string Word(const std::string& word) {
  const auto number = std::find(kNumbers.begin(), kNumbers.end(), word);
  if (number == kNumbers.end()) return word;
  return *number == "none" ? "0" : std::to_string(number - kNumbers.begin());
}

double Ratio(int64_t part, int64_t whole) {
  return whole == 0 ? std::numeric_limits<double>::quiet_NaN()
                    : static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

std::string NormalizedVqaAnswer(std::string_view answer, bool textvqa) {
  const std::string text = Spaced(textvqa ? TextVqaWords(answer) : std::string(answer));
  std::istringstream words(Lowered(WithoutPunctuation(text)));
  std::string normalized;
  for (std::string word; words >> word;) {
    word = Word(word);
    if (word == "a" || word == "an" || word == "the") continue;
    const auto contraction = Contractions().find(word);
    if (!normalized.empty()) normalized += ' ';
    normalized += contraction == Contractions().end() ? word : contraction->second;
  }
  return normalized;
}

double VqaSoftAccuracy(std::string_view answer, std::span<const std::string> people, bool textvqa) {
  if (people.size() < 2) {
    throw std::invalid_argument(std::to_string(people.size()) +
                                " answers of people: soft accuracy needs several");
  }
  const std::string given = NormalizedVqaAnswer(answer, textvqa);
  const auto equal = std::count_if(people.begin(), people.end(), [&](const std::string& one) {
    return NormalizedVqaAnswer(one, textvqa) == given;
  });
  const auto agreed = [](int64_t others) { return std::min(1.0, static_cast<double>(others) / 3); };
  const auto n = static_cast<double>(people.size()), k = static_cast<double>(equal);
  return ((equal > 0 ? k * agreed(equal - 1) : 0) + (n - k) * agreed(equal)) / n;
}

bool VqaExactMatch(std::string_view answer, std::span<const std::string> right) {
  const auto plain = [](std::string_view text) {
    text = StripUtf8(text);
    if (text.ends_with('.')) text = StripUtf8(text.substr(0, text.size() - 1));
    return Lowered(text);
  };
  return std::any_of(right.begin(), right.end(),
                     [&](const std::string& one) { return plain(one) == plain(answer); });
}

YesNo ReadYesNo(std::string_view answer) {
  std::string sentence(answer.substr(0, answer.find('.')));
  std::erase(sentence, ',');
  for (size_t begin = 0; begin <= sentence.size();) {
    const size_t end = std::min(sentence.find(' ', begin), sentence.size());
    const std::string_view word = std::string_view(sentence).substr(begin, end - begin);
    if (word == "No" || word == "no" || word == "not") return YesNo::kNo;
    begin = end + 1;
  }
  return YesNo::kYes;
}

bool SaysYesOrNo(std::string_view answer) {
  std::string word;
  for (const char c : Lowered(answer) + " ") {
    if (std::isalpha(static_cast<unsigned char>(c))) {
      word += c;
      continue;
    }
    if (word == "yes" || word == "no" || word == "not") return true;
    word.clear();
  }
  return false;
}

void PopeCounts::Add(YesNo label, std::string_view answer) {
  const bool said_yes = ReadYesNo(answer) == YesNo::kYes, is_yes = label == YesNo::kYes;
  ++(said_yes ? (is_yes ? true_yes : false_yes) : (is_yes ? false_no : true_no));
  unclear += !SaysYesOrNo(answer);
}

PopeCounts& PopeCounts::operator+=(const PopeCounts& other) {
  true_yes += other.true_yes;
  false_yes += other.false_yes;
  true_no += other.true_no;
  false_no += other.false_no;
  unclear += other.unclear;
  return *this;
}

double PopeCounts::accuracy() const { return Ratio(true_yes + true_no, count()); }
double PopeCounts::precision() const { return Ratio(true_yes, true_yes + false_yes); }
double PopeCounts::recall() const { return Ratio(true_yes, true_yes + false_no); }
double PopeCounts::f1() const {
  // NaN without anything said or to be said, 0 where nothing is right.
  return Ratio(2 * true_yes, 2 * true_yes + false_yes + false_no);
}
double PopeCounts::yes_ratio() const { return Ratio(true_yes + false_yes, count()); }

}  // namespace llava
