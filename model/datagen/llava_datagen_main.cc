// llava-datagen: makes training data.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>

#include "model/datagen/scenes_command.h"
#include "model/datagen/science_command.h"

int main(int argc, char** argv) {
  CLI::App app("Makes training data for llava-train", "llava-datagen");
  app.set_version_flag("--version", "llava-datagen " LLAVA_VERSION);
  app.set_help_all_flag("--help-all", "Print the help of all commands and exit");
  app.require_subcommand(1);
  const auto scenes = llava::AddScenesCommand(app);
  const auto science = llava::AddScienceCommand(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "llava-datagen: %s (see --help)\n", error.what());
    return 2;
  }
  return app.got_subcommand("science") ? science() : scenes();
}
