#include "model/train/tokenizer_command.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>

#include "model/checkpoint/durable_file.h"
#include "model/text/chat_template.h"
#include "model/text/tokenizer.h"
#include "model/train/scene_corpus.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

constexpr const char* kProgram = "spm_train";
constexpr const char* kPartSymbol = "<part>";  // of maps of words

// A folder for files that only spm_train needs; gone with the object.
class WorkFolder {
 public:
  explicit WorkFolder(const fs::path& parent) : path_(parent / (".tmp-" + RandomName())) {
    fs::create_directories(path_);
  }
  ~WorkFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

fs::path FindProgram() {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');) {
    const fs::path program = fs::path(folder.empty() ? "." : folder) / kProgram;
    if (access(program.c_str(), X_OK) == 0) return fs::absolute(program);
  }
  throw std::runtime_error(std::string(kProgram) +
                           " is not in PATH: install SentencePiece (Debian: package "
                           "\"sentencepiece\")");
}

// Runs the program within `folder`, its output in log.txt there. Throws with the end of that if it
// fails.
void Run(const fs::path& program, std::vector<std::string> arguments, const fs::path& folder) {
  const fs::path log = fs::absolute(folder) / "log.txt";
  arguments.insert(arguments.begin(), program.string());
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addchdir_np(&actions, folder.c_str());
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t process = 0;
  const int error =
      posix_spawn(&process, program.c_str(), &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    throw std::runtime_error(program.string() + " does not start: " + std::strerror(error));
  }
  int status = 0;
  while (waitpid(process, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
  constexpr size_t kShown = 1000;
  std::string said = ReadSmallFile(log);
  if (said.size() > kShown) said.erase(0, said.size() - kShown);
  throw std::runtime_error(program.string() + " failed (" +
                           (WIFEXITED(status) ? "exit code " + std::to_string(WEXITSTATUS(status))
                                              : "signal " + std::to_string(WTERMSIG(status))) +
                           "): " + said);
}

// The messages of LLaVA's records, or the lines of a text.
void ReadText(const fs::path& path, std::vector<std::string>& lines) {
  std::ifstream in(path);
  if (!in) throw std::invalid_argument(path.string() + ": the text cannot be read");
  const auto add = [&](const std::string& text) {
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) {
      if (!line.empty()) lines.push_back(line);
    }
  };
  if (path.extension() != ".json") {
    std::ostringstream all;
    all << in.rdbuf();
    add(all.str());
    return;
  }
  try {
    for (const auto& record : nlohmann::json::parse(in)) {
      for (const auto& message : record.at("conversations")) {
        std::string text = message.at("value").get<std::string>();
        for (size_t mark; (mark = text.find("<image>")) != text.npos;) text.erase(mark, 7);
        add(text);
      }
    }
  } catch (const nlohmann::json::exception& error) {
    throw std::invalid_argument(path.string() + ": not LLaVA's JSON: " + error.what());
  }
}

std::string Join(const std::vector<std::string>& parts, const char* between) {
  std::string joined;
  for (const std::string& part : parts) (joined += joined.empty() ? "" : between) += part;
  return joined;
}

void CheckWords(const Tokenizer& tokenizer, const TokenizerCommand& command) {
  std::vector<std::string> broken;
  for (const std::string& word : SceneWords(command.num_categories)) {
    if (tokenizer.EncodePieces(word).size() != 1) broken.push_back(word);
  }
  if (broken.empty()) return;
  throw std::runtime_error("with " + std::to_string(command.vocabulary) + " pieces " +
                           std::to_string(broken.size()) +
                           " words did not become one piece each: " + Join(broken, ", ") +
                           "; train a larger vocabulary");
}

double TokensPerWord(const Tokenizer& tokenizer, const std::vector<std::string>& lines) {
  constexpr size_t kMost = 10000;  // lines looked at
  size_t tokens = 0, words = 0;
  for (size_t i = 0; i < std::min(kMost, lines.size()); ++i) {
    tokens += tokenizer.EncodePieces(lines[i]).size();
    std::istringstream stream(lines[i]);
    for (std::string word; stream >> word;) ++words;
  }
  return words == 0 ? 0 : static_cast<double>(tokens) / static_cast<double>(words);
}

}  // namespace

TokenizerSummary TrainTokenizer(const TokenizerCommand& command) {
  const fs::path program = FindProgram();
  const ChatTemplate chat_template = ChatTemplate::Builtin(command.chat_template);
  std::vector<std::string> lines;
  for (const fs::path& text : command.texts) ReadText(text, lines);
  const bool builtin = command.texts.empty();
  if (builtin) lines = SceneCorpus(command.num_categories, command.scenes, command.seed);
  if (lines.empty()) throw std::invalid_argument("the texts are empty");

  fs::create_directories(command.output);
  const WorkFolder work(command.output);
  const fs::path corpus = work.path() / "corpus.txt";
  {
    std::ofstream out(corpus);
    for (const std::string& line : lines) out << line << '\n';
    if (!out.flush()) throw std::runtime_error(corpus.string() + ": cannot be written");
  }
  std::vector<std::string> symbols = chat_template.special_pieces();
  symbols.emplace_back(kPartSymbol);
  Run(program,
      // Relative paths, for the model file tells them.
      {"--input=corpus.txt", "--model_prefix=tokenizer",
       "--vocab_size=" + std::to_string(command.vocabulary), "--model_type=bpe",
       "--byte_fallback=true", "--character_coverage=1.0", "--unk_id=0", "--bos_id=1", "--eos_id=2",
       "--pad_id=3", "--user_defined_symbols=" + Join(symbols, ","),
       // The same model every time.
       "--num_threads=1", "--shuffle_input_sentence=false", "--hard_vocab_limit=false",
       "--minloglevel=1"},
      work.path());

  const std::string bytes = ReadSmallFile(work.path() / "tokenizer.model");
  const Tokenizer tokenizer =
      Tokenizer(bytes, {}).WithSpecialPieces(chat_template.special_pieces());
  if (builtin) CheckWords(tokenizer, command);
  WriteDurably(command.output / "tokenizer.model", bytes);
  WriteDurably(command.output / "tokenizer_config.json", tokenizer.ConfigJson());
  return {tokenizer.vocab_size(), static_cast<int64_t>(lines.size()),
          TokensPerWord(tokenizer, lines)};
}

}  // namespace llava
