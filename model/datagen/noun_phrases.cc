#include "model/datagen/noun_phrases.h"

#include <algorithm>
#include <cctype>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace llava {
namespace {

enum class Tag {
  kBreak,       // punctuation
  kDeterminer,  // and numbers, words of quantity
  kPreposition,
  kConjunction,
  kPronoun,
  kAuxiliary,
  kAdverb,
  kAdjective,
  kNoun,
  kIng,
  kParticiple,
  kVerb,       // surely one
  kAmbiguous,  // verb or noun
};

struct Word {
  std::string text;
  Tag tag = Tag::kNoun;
};

// Words by section, read from lexicon.txt once.
class Lexicon {
 public:
  static const Lexicon& Get() {
    static const Lexicon lexicon(LexiconText());
    return lexicon;
  }

  Tag TagOf(const std::string& word) const {
    if (const auto found = tags_.find(word); found != tags_.end()) return found->second;
    const auto ends = [&](std::string_view ending, size_t least) {
      return word.size() >= least && word.ends_with(ending);
    };
    if (std::any_of(word.begin(), word.end(), [](unsigned char c) { return std::isdigit(c); })) {
      return ends("s", 3) ? Tag::kNoun : Tag::kDeterminer;  // "1950s" or "12"
    }
    if (ends("ly", 5)) return Tag::kAdverb;
    if (ends("ing", 5)) return Tag::kIng;
    if (ends("ed", 4)) return Tag::kParticiple;
    for (const char* ending : {"ful", "ous", "less", "able", "ible", "ish", "ive", "est"}) {
      if (ends(ending, 6)) return Tag::kAdjective;
    }
    return Tag::kNoun;
  }
  bool Compounds(const std::string& word) const { return compounding_.contains(word); }
  bool CompoundParticiple(const std::string& word) const {
    return compound_participles_.contains(word);
  }

 private:
  explicit Lexicon(std::string_view text) {
    const std::unordered_map<std::string_view, Tag> sections = {{"determiners", Tag::kDeterminer},
                                                                {"prepositions", Tag::kPreposition},
                                                                {"conjunctions", Tag::kConjunction},
                                                                {"pronouns", Tag::kPronoun},
                                                                {"auxiliaries", Tag::kAuxiliary},
                                                                {"adverbs", Tag::kAdverb},
                                                                {"nouns", Tag::kNoun},
                                                                {"adjectives", Tag::kAdjective},
                                                                {"participles", Tag::kParticiple},
                                                                {"finite verbs", Tag::kVerb},
                                                                {"verbs", Tag::kVerb},
                                                                {"ambiguous", Tag::kAmbiguous}};
    std::string_view section;
    while (!text.empty()) {
      const std::string_view line = text.substr(0, text.find('\n'));
      text.remove_prefix(std::min(text.size(), line.size() + 1));
      if (line.starts_with('#')) continue;
      if (line.starts_with('[')) {
        section = line.substr(1, line.size() - 2);
        continue;
      }
      for (size_t at = 0; at < line.size();) {
        const size_t end = std::min(line.find(' ', at), line.size());
        const std::string word(line.substr(at, end - at));
        at = end + 1;
        if (word.empty()) continue;
        if (section == "compounding") {
          compounding_.insert(word);
        } else if (section == "compound participles") {
          compound_participles_.insert(word);
        } else {
          const Tag tag = sections.at(section);
          tags_.emplace(word, tag);  // the first section wins
          if (section == "verbs" || section == "ambiguous") tags_.emplace(ThirdPerson(word), tag);
        }
      }
    }
  }

  static std::string ThirdPerson(const std::string& verb) {
    if (verb.ends_with('y') && verb.size() > 1 &&
        std::string_view("aeiou").find(verb[verb.size() - 2]) == std::string_view::npos) {
      return verb.substr(0, verb.size() - 1) + "ies";
    }
    for (const char* ending : {"s", "x", "z", "ch", "sh", "o"}) {
      if (verb.ends_with(ending)) return verb + "es";
    }
    return verb + "s";
  }

  std::unordered_map<std::string, Tag> tags_;
  std::unordered_set<std::string> compounding_, compound_participles_;
};

// Words in lower case and marks, each with its tag; "man 's" becomes "man's".
std::vector<Word> Tokenize(std::string_view caption) {
  std::vector<Word> words;
  std::string word;
  const auto finish = [&] {
    while (word.ends_with('\'') || word.ends_with('-')) word.pop_back();
    while (word.starts_with('\'') || word.starts_with('-')) word.erase(0, 1);
    if (word == "s" && !words.empty() && words.back().tag == Tag::kNoun) {
      words.back().text += "'s";
    } else if (!word.empty()) {
      words.push_back({word, Lexicon::Get().TagOf(word)});
    }
    word.clear();
  };
  for (size_t i = 0; i < caption.size(); ++i) {
    const auto c = static_cast<unsigned char>(caption[i]);
    if (std::isalnum(c) || c >= 0x80 || c == '\'' || c == '-') {
      word += static_cast<char>(std::tolower(c));
    } else {
      finish();
      if (!std::isspace(c)) words.push_back({std::string(1, caption[i]), Tag::kBreak});
    }
  }
  finish();
  // Fixed expressions.
  const auto is = [&](size_t at, const char* text) {
    return at < words.size() && words[at].text == text;
  };
  for (size_t i = 0; i < words.size(); ++i) {
    if ((is(i, "in") && is(i + 1, "front") && is(i + 2, "of")) ||
        (is(i, "on") && is(i + 1, "top") && is(i + 2, "of"))) {
      words[i + 1].tag = Tag::kPreposition;
    }
    if (is(i, "next") && is(i + 1, "to")) words[i].tag = Tag::kPreposition;
    if (is(i, "close") && is(i + 1, "to")) words[i].tag = Tag::kPreposition;
    if (is(i, "close") && is(i + 1, "up") && (i + 2 == words.size() || is(i + 2, "of"))) {
      words[i] = {"close up", Tag::kNoun};
      words.erase(words.begin() + static_cast<ptrdiff_t>(i) + 1);
    }
  }
  return words;
}

bool IsPlural(const std::string& noun) {
  for (const char* word : {"people", "men", "women", "children", "police", "cattle", "sheep",
                           "deer", "kids", "fish", "crew", "team", "couple"}) {
    if (noun == word) return true;
  }
  return noun.ends_with('s') && !noun.ends_with("ss") && !noun.ends_with("us");
}

class Chunker {
 public:
  explicit Chunker(std::vector<Word> words) : words_(std::move(words)) {}

  std::vector<std::string> Run() {
    for (at_ = 0; at_ < words_.size(); ++at_) Step();
    Close();
    return std::move(phrases_);
  }

 private:
  Tag TagAt(size_t at) const { return at < words_.size() ? words_[at].tag : Tag::kBreak; }

  // Whether the next word may go on with a phrase.
  bool NominalNext() const {
    switch (TagAt(at_ + 1)) {
      case Tag::kNoun:
      case Tag::kAdjective:
      case Tag::kAmbiguous:
        return true;
      case Tag::kIng:  // "racing driver", "rising morning sun"
      case Tag::kParticiple:
        return TagAt(at_ + 2) == Tag::kNoun;
      default:
        return false;
    }
  }

  bool EndsWithNoun() const { return !chunk_.empty() && chunk_.back().tag == Tag::kNoun; }

  void Step() {
    const Word& word = words_[at_];
    switch (word.tag) {
      case Tag::kBreak:
      case Tag::kPronoun:
        Close();
        verb_seen_ = joined_ = false;
        break;
      case Tag::kPreposition:
        Close();
        joined_ = false;
        break;
      case Tag::kVerb:
        if (determined_ && !EndsWithNoun()) {  // "a shot": no verb behind an article
          chunk_.push_back({word.text, Tag::kNoun});
          break;
        }
        [[fallthrough]];
      case Tag::kAuxiliary:
        Close();
        verb_seen_ = true;
        break;
      case Tag::kConjunction:
        // "black and white photo" is one phrase.
        if (word.text == "and" && !chunk_.empty() && chunk_.back().tag == Tag::kAdjective &&
            TagAt(at_ + 1) == Tag::kAdjective && TagAt(at_ + 2) == Tag::kNoun) {
          chunk_.push_back(word);
        } else {
          joined_ = EndsWithNoun() && word.text == "and";
          Close();
        }
        break;
      case Tag::kDeterminer:
        Close();
        determined_ = true;
        break;
      case Tag::kAdverb:
        StepAdverb(word);
        break;
      case Tag::kAdjective:
        if (EndsWithNoun()) Close();
        chunk_.push_back(word);
        break;
      case Tag::kNoun:
        chunk_.push_back(word);
        break;
      case Tag::kIng:
        StepIng(word);
        break;
      case Tag::kParticiple:
        StepParticiple(word);
        break;
      case Tag::kAmbiguous:
        StepAmbiguous(word);
        break;
    }
  }

  void StepAdverb(const Word& word) {
    const Tag next = TagAt(at_ + 1);
    const bool modifies = next == Tag::kAdjective || next == Tag::kParticiple || next == Tag::kIng;
    if (modifies && !EndsWithNoun() && (determined_ || !chunk_.empty())) {
      chunk_.push_back(word);  // "a heavily loaded truck"
    } else {
      const bool subject = EndsWithNoun();
      Close();
      subject_ = subject;
    }
  }

  void StepIng(const Word& word) {
    const bool compounds = Lexicon::Get().Compounds(word.text);
    if (EndsWithNoun()) {
      if (compounds && TagAt(at_ + 1) == Tag::kNoun && !IsPlural(chunk_.back().text) &&
          TagAt(at_ + 2) != Tag::kNoun && chunk_.size() > 1) {
        chunk_.push_back(word);
      } else {
        Close();
      }
      return;
    }
    const bool within = determined_ || !chunk_.empty();
    if (NominalNext() && (within || compounds)) {
      chunk_.push_back(word);
    } else if (within && !NominalNext()) {
      chunk_.push_back({word.text, Tag::kNoun});  // "the singing of birds"
    } else {
      Close();
    }
  }

  void StepParticiple(const Word& word) {
    const bool compound = EndsWithNoun() && Lexicon::Get().CompoundParticiple(word.text);
    if (NominalNext() && (!EndsWithNoun() || compound)) {
      chunk_.push_back(word);
    } else {
      Close();
    }
  }

  void StepAmbiguous(const Word& word) {
    if (IsVerbHere(word)) {
      Close();
      verb_seen_ = true;
    } else {
      chunk_.push_back({word.text, Tag::kNoun});
    }
  }

  bool IsVerbHere(const Word& word) const {
    if (at_ > 0) {
      const Word& before = words_[at_ - 1];
      if (before.text == "to" || before.tag == Tag::kPronoun) return true;
      if (before.tag == Tag::kAuxiliary && chunk_.empty()) return true;
      if (before.tag == Tag::kAdverb && subject_ && chunk_.empty()) return true;
    }
    if (!EndsWithNoun() || verb_seen_) return false;
    const bool third_person = IsPlural(word.text);
    const bool plural_subject = IsPlural(chunk_.back().text) || joined_;
    if (third_person == plural_subject) return false;  // they do not agree
    switch (TagAt(at_ + 1)) {
      case Tag::kDeterminer:
      case Tag::kPreposition:
      case Tag::kAdverb:
      case Tag::kPronoun:
      case Tag::kAdjective:
        return true;
      case Tag::kNoun:
      case Tag::kAmbiguous:
      case Tag::kIng:
      case Tag::kParticiple:
        return true;  // "workers load boxes"
      case Tag::kVerb:
      case Tag::kAuxiliary:
        return false;  // that is the verb
      default:
        return third_person;
    }
  }

  // Ends the phrase, which must end with a noun.
  void Close() {
    while (!chunk_.empty() && chunk_.back().tag != Tag::kNoun) chunk_.pop_back();
    if (!chunk_.empty()) {
      std::string phrase;
      for (const Word& word : chunk_) phrase += (phrase.empty() ? "" : " ") + word.text;
      if (phrase.ends_with("'s")) phrase.erase(phrase.size() - 2);
      phrases_.push_back(std::move(phrase));
    }
    chunk_.clear();
    determined_ = false;
    subject_ = false;
  }

  std::vector<Word> words_;
  size_t at_ = 0;
  std::vector<Word> chunk_;
  bool determined_ = false;  // an article or the like stood in front
  bool subject_ = false;     // a noun or pronoun stood in front of an adverb
  bool verb_seen_ = false;   // since the beginning of the clause
  bool joined_ = false;      // "a man and" stood in front
  std::vector<std::string> phrases_;
};

}  // namespace

std::vector<std::string> NounPhrases(std::string_view caption) {
  return Chunker(Tokenize(caption)).Run();
}

}  // namespace llava
