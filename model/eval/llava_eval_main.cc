// llava-eval: measures models.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <functional>
#include <map>
#include <string>

#include "model/eval/commands.h"
#include "model/progress/guarded.h"

int main(int argc, char** argv) {
  CLI::App app("Measures what models know", "llava-eval");
  app.set_version_flag("--version", "llava-eval " LLAVA_VERSION);
  app.set_help_all_flag("--help-all", "Print the help of all commands and exit");
  app.require_subcommand(1);
  const std::map<std::string, std::function<int()>> commands = {
      {"chat-quality", llava::AddChatQualityCommand(app)},
      {"ablation", llava::AddAblationCommand(app)},
      {"answer", llava::AddAnswerCommand(app)},
      {"judge", llava::AddJudgeCommand(app)},
      {"report", llava::AddReportCommand(app)},
      {"scienceqa", llava::AddScienceQaCommand(app)},
      {"vqa", llava::AddVqaCommand(app)},
  };
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "llava-eval: %s (see --help)\n", error.what());
    return 2;
  }
  return llava::RunGuarded("llava-eval", commands.at(app.get_subcommands().front()->get_name()));
}
