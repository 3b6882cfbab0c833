// llava-datagen: makes training data.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <functional>
#include <map>
#include <string>

#include "model/datagen/commands.h"
#include "model/progress/guarded.h"

int main(int argc, char** argv) {
  CLI::App app("Makes training data for llava-train", "llava-datagen");
  app.set_version_flag("--version", "llava-datagen " LLAVA_VERSION);
  app.set_help_all_flag("--help-all", "Print the help of all commands and exit");
  app.require_subcommand(1);
  const std::map<std::string, std::function<int()>> commands = {
      {"scenes", llava::AddScenesCommand(app)},       {"science", llava::AddScienceCommand(app)},
      {"instruct", llava::AddInstructCommand(app)},   {"expand", llava::AddExpandCommand(app)},
      {"questions", llava::AddQuestionsCommand(app)}, {"prompts", llava::AddPromptsCommand(app)},
      {"filter-cc3m", llava::AddFilterCommand(app)},
  };
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "llava-datagen: %s (see --help)\n", error.what());
    return 2;
  }
  return llava::RunGuarded("llava-datagen", commands.at(app.get_subcommands().front()->get_name()));
}
