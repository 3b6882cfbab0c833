// llava-eval: measures models.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>

#include "model/eval/ablation_command.h"
#include "model/eval/chat_quality_command.h"

int main(int argc, char** argv) {
  CLI::App app("Measures what models know", "llava-eval");
  app.set_version_flag("--version", "llava-eval " LLAVA_VERSION);
  app.set_help_all_flag("--help-all", "Print the help of all commands and exit");
  app.require_subcommand(1);
  const auto chat_quality = llava::AddChatQualityCommand(app);
  const auto ablation = llava::AddAblationCommand(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "llava-eval: %s (see --help)\n", error.what());
    return 2;
  }
  return app.got_subcommand("ablation") ? ablation() : chat_quality();
}
