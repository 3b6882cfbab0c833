// What a constraint costs: compiling it, and the mask of allowed tokens at each step of random
// walks, with a vocabulary of 32,000 pieces that are frequent in the files given (texts, sources).
//
//   llava_grammar_bench docs/*.md server/*/*.cc
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model/grammar/grammar.h"
#include "model/grammar/matcher.h"

namespace llava {
namespace {

// Time of this thread on a processor: others may be busy, too.
struct Clock {
  using time_point = double;
  static double now() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return 1e6 * static_cast<double>(time.tv_sec) + 1e-3 * static_cast<double>(time.tv_nsec);
  }
};

constexpr size_t kTokens = 32'000, kLongestPiece = 12;

double Micros(Clock::time_point since) { return Clock::now() - since; }

// All bytes, then what is frequent, longer pieces counting for more; a space begins a piece.
std::shared_ptr<const grammar::Vocabulary> VocabularyOf(const std::vector<std::string>& files) {
  std::unordered_map<std::string, size_t> counts;
  for (const std::string& file : files) {
    std::ifstream stream(file, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    for (size_t begin = 0; begin < text.size(); ++begin) {
      for (size_t size = 2; size <= kLongestPiece && begin + size <= text.size(); ++size) {
        if (size > 2 && text[begin + size - 1] == ' ' && text[begin] != ' ') break;
        counts[text.substr(begin, size)] += size;
      }
    }
  }
  std::vector<std::pair<size_t, std::string>> ranked;
  for (auto& [piece, count] : counts) ranked.emplace_back(count, piece);
  std::sort(ranked.rbegin(), ranked.rend());
  std::vector<std::string> tokens = {"", "", ""};
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  for (size_t i = 0; i < ranked.size() && tokens.size() < kTokens; ++i) {
    tokens.push_back(ranked[i].second);
  }
  return std::make_shared<const grammar::Vocabulary>(std::move(tokens));
}

double At(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

template <typename Make>
void Measure(const char* name, const Make& make,
             const std::shared_ptr<const grammar::Vocabulary>& vocabulary) {
  const auto begin = Clock::now();
  const std::shared_ptr<const grammar::Automaton> automaton = make();
  const double compile = Micros(begin);
  const auto constraint = std::make_shared<grammar::Constraint>(automaton, vocabulary);
  std::mt19937 random(1);
  std::vector<uint64_t> mask((kTokens + 63) / 64);
  std::vector<double> first, later, advances;
  for (int answer = 0; answer < 40; ++answer) {
    grammar::Matcher matcher(constraint);
    for (int step = 0; step < 200 && !matcher.finished(); ++step) {
      const auto before = Clock::now();
      matcher.FillMask(mask);
      (answer == 0 ? first : later).push_back(Micros(before));
      std::vector<int32_t> allowed;
      for (int32_t id = 0; id < vocabulary->size(); ++id) {
        if ((mask[static_cast<size_t>(id) / 64] >> (static_cast<size_t>(id) % 64)) & 1) {
          allowed.push_back(id);
        }
      }
      const auto ready = Clock::now();
      if (!matcher.Advance(allowed.at(random() % allowed.size()))) std::abort();
      advances.push_back(Micros(ready));
    }
  }
  std::printf("%-28s %9.0f | %7.1f %7.1f %8.1f | %7.1f %7.1f %8.1f | %6.2f %7.1f\n", name, compile,
              At(first, 0.5), At(first, 0.99), At(first, 1), At(later, 0.5), At(later, 0.99),
              At(later, 1), At(advances, 0.5), At(advances, 1));
}

void MeasureSchema(const char* name, const std::string& schema,
                   const std::shared_ptr<const grammar::Vocabulary>& vocabulary) {
  Measure(
      name, [&] { return grammar::JsonSchema(schema); }, vocabulary);
}

}  // namespace
}  // namespace llava

int main(int argc, char** argv) {
  using namespace llava;
  if (argc < 2 || std::string(argv[1]) == "--help") {
    std::puts(
        "llava_grammar_bench FILE...\n"
        "What a constraint costs, in microseconds on a processor: compiling it, and the mask of\n"
        "allowed tokens at each step of random answers (first: of the first answer). The files\n"
        "(texts, sources) give 32,000 tokens.");
    return argc < 2 ? 2 : 0;
  }
  const auto begin = Clock::now();
  const auto vocabulary = VocabularyOf({argv + 1, argv + argc});
  std::printf("%d tokens, %zu nodes, made in %.0f ms with the counting of pieces\n",
              vocabulary->size(), vocabulary->nodes().size(), Micros(begin) / 1000);
  std::printf("%-28s %9s | %7s %7s %8s | %7s %7s %8s | %6s %7s\n", "microseconds", "compile",
              "first", "99 %", "most", "later", "99 %", "most", "token", "most");
  Measure(
      "any object", [] { return grammar::JsonObject(); }, vocabulary);
  MeasureSchema(
      "record of five members",
      R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0,"maximum":150},
              "kind":{"enum":["cat","dog","bird"]},"tags":{"type":"array","items":{"type":"string"}},
              "score":{"type":"number"}},"required":["name","age","kind","tags","score"]})",
      vocabulary);
  MeasureSchema("strings of at most 100",
                R"({"type":"array","items":{"type":"string","maxLength":100}})", vocabulary);
  MeasureSchema(
      "tree, alternatives",
      R"({"$ref":"#/$defs/n","$defs":{"n":{"anyOf":[{"type":"string"},{"type":"object","properties":
              {"a":{"$ref":"#/$defs/n"},"b":{"$ref":"#/$defs/n"}},"required":["a"]},{"type":"array","items":{"$ref":"#/$defs/n"}}]}}})",
      vocabulary);
  std::string wide = R"({"type":"object","additionalProperties":true,"properties":{)";
  for (int i = 0; i < 400; ++i) {
    wide.append(i > 0 ? "," : "").append("\"member ").append(std::to_string(i)).append("\":{}");
  }
  MeasureSchema("400 optional members", wide + "}}", vocabulary);
  // Each of its alternatives goes on its own way at once.
  std::string worst = R"({"anyOf":[)";
  for (int i = 0; i < 60; ++i) {
    worst.append(i > 0 ? "," : "");
    worst += std::string(R"({"type":"array","items":{"anyOf":[{"type":"string","maxLength":)") +
             std::to_string(40 + i) + R"(},{"type":"array","items":{"type":"string","minLength":)" +
             std::to_string(i) + "}}]}}";
  }
  MeasureSchema("60 overlapping arrays", worst + "]}", vocabulary);
  std::string any = "[ -~]";
  for (int i = 1; i < 180; ++i) any += "|[ -~]";
  const std::string pattern = std::string("[ -~]*[a-m](?:").append(any).append("){20}");
  Measure(
      "180 equal alternatives", [&] { return grammar::Regex(pattern); }, vocabulary);
  return 0;
}
