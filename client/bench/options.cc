#include "client/bench/options.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "client/access_flags.h"

namespace llava::bench {
namespace {

// One a line.
std::vector<std::string> ReadQuestions(const std::string& path) {
  std::vector<std::string> questions =
      absl::StrSplit(ReadFlagFile("--prompts", path), '\n', absl::SkipEmpty());
  if (questions.empty()) throw CLI::ValidationError("--prompts", path + " holds no questions");
  return questions;
}

}  // namespace

std::variant<BenchOptions, int> ParseBenchOptions(int argc, const char* const* argv) {
  BenchOptions options;
  LoadOptions& load = options.load;
  uint32_t max_new_tokens = 64;
  float temperature = 0;
  bool ignore_eos = false;
  double timeout = 120;
  std::string prompts_file;
  std::vector<std::string> picture_files;

  CLI::App app("Holds many conversations with a llava gateway and measures them.", "llava-bench");
  app.set_version_flag("--version", std::string("llava-bench " LLAVA_VERSION));
  app.footer(
      "Prints throughput, time to the first text by turn, times of tokens, gaps and answers, and\n"
      "errors. Questions are random words unless --prompts names a file. Exit status: 0; 1 if no\n"
      "question was answered, the gateway cannot be reached or the results cannot be written; 2\n"
      "after a wrong flag; 130 after Ctrl-C and 143 after SIGTERM, which cancel the answers under\n"
      "way (what was measured is printed).");
  const auto positive = CLI::Range(1, 1'000'000);
  app.add_option("--gateway", options.gateway, "Address of the gateway")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  AccessFlags access;
  access.Declare(app, [](CLI::Option*) {});
  app.add_option("--connections", options.connections, "Connections that the sessions share")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--sessions", load.sessions,
                 "Sessions at a time (closed loop); most at a time (open loop)")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--rate", load.rate, "Open loop: sessions begun a second, at random moments")
      ->check(CLI::Range(1e-3, 1e6));
  app.add_option("--turns", load.turns, "Questions of a session")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--idle-sessions", load.idle_sessions, "Sessions held open without a question")
      ->check(CLI::Range(0, 1'000'000));
  app.add_option("--seconds", load.seconds, "Measured time")
      ->check(CLI::Range(0.1, 1e6))
      ->capture_default_str();
  app.add_option("--warmup", load.warmup_seconds, "Seconds before it")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--max-turns", load.max_turns, "End after so many answers; 0: by time alone");
  app.add_option("--timeout", timeout, "Longest time of an answer, in seconds")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  auto* prompts =
      app.add_option("--prompts", prompts_file, "Questions, one a line")->type_name("FILE");
  app.add_option("--prompt-words", load.prompt_words, "Words of a random question")
      ->check(positive)
      ->capture_default_str()
      ->excludes(prompts);
  auto* pictures = app.add_option("--picture", picture_files,
                                  "Goes with a session's first question; several are drawn from")
                       ->type_name("FILE")
                       ->allow_extra_args(false);
  app.add_flag("--unique-pictures", load.unique_pictures,
               "No picture twice (bytes behind its end), so that each must be encoded")
      ->needs(pictures);
  app.add_option("--model", load.model, "Model to ask (default: the gateway's)")->type_name("NAME");
  app.add_option("--max-new-tokens", max_new_tokens, "Longest answer, in tokens")
      ->check(CLI::Range(uint32_t{1}, UINT32_MAX))
      ->capture_default_str();
  app.add_flag("--ignore-eos", ignore_eos, "Every answer gets that long");
  app.add_option("--temperature", temperature, "Spread of the choice; 0: the best token")
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str();
  app.add_option("--seed", load.seed, "Of words, pictures and moments")->capture_default_str();
  app.add_flag("--stamps", load.stamps,
               "Answers are their sender's clock in nanoseconds (stand-ins): measure their age");
  app.add_option("--json", options.json, "Write the figures there; -: print them instead")
      ->type_name("FILE");
  try {
    app.parse(argc, argv);
    auto read = access.Read();
    load.api_key = std::move(read.api_key);
    options.tls = std::move(read.tls);
    for (const std::string& path : picture_files) {
      load.pictures.push_back(ReadFlagFile("--picture", path));
    }
    if (!prompts_file.empty()) load.prompts = ReadQuestions(prompts_file);
  } catch (const CLI::CallForHelp&) {
    std::cout << app.help();
    return 0;
  } catch (const CLI::CallForVersion& version) {
    std::cout << version.what() << '\n';
    return 0;
  } catch (const CLI::ParseError& error) {
    std::cerr << "llava-bench: " << error.what() << " (see llava-bench --help)\n";
    return 2;
  }
  load.timeout = std::chrono::milliseconds(static_cast<int64_t>(1e3 * timeout));
  load.sampling.set_max_new_tokens(max_new_tokens);
  load.sampling.set_temperature(temperature);
  load.sampling.set_ignore_eos(ignore_eos);
  return options;
}

}  // namespace llava::bench
