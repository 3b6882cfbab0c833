#include "client/chat/options.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <utility>

#include "client/access_flags.h"

namespace llava {
namespace {

// --max-new-tokens has its twin in LLAVA_CHAT_MAX_NEW_TOKENS.
std::string EnvironmentName(std::string flag) {
  for (char& c : flag) c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return "LLAVA_CHAT_" + flag;
}

}  // namespace

std::variant<ChatOptions, int> ParseChatOptions(int argc, const char* const* argv) {
  ChatOptions options;
  double temperature, top_p;
  uint32_t top_k, max_new_tokens;
  uint64_t seed;

  CLI::App app(
      "Chat about pictures with a llava gateway. Lines are questions; /help lists commands.",
      "llava-chat");
  app.set_version_flag("--version", std::string("llava-chat " LLAVA_VERSION));
  app.footer(
      "Each flag has an environment twin, e.g. LLAVA_CHAT_GATEWAY; the flag wins.\n"
      "Answers go to standard output, all else to standard error. Exit status: 0; 1 after\n"
      "an error, also where standard output takes no more (at a keyboard errors within the\n"
      "conversation do not count); 2 after a wrong flag; 128 and its number after a signal.");
  const auto twin = [](CLI::Option* option) {
    return option->envname(EnvironmentName(option->get_name().substr(2)));
  };
  twin(app.add_option("--gateway", options.gateway, "Address of the gateway")
           ->type_name("HOST:PORT")
           ->capture_default_str());
  AccessFlags access;
  access.Declare(app, twin);
  twin(
      app.add_option("--image", options.image, "Picture of the first question")->type_name("PATH"));
  twin(app.add_option("--model", options.model, "Model to ask (default: the gateway's)")
           ->type_name("NAME"));
  CLI::Option* system =
      twin(app.add_option("--system", options.system, "Replaces the model's system text")
               ->type_name("TEXT"));
  CLI::Option* temperature_flag =
      twin(app.add_option("--temperature", temperature, "Spread of the choice; 0: the best token")
               ->check(CLI::Range(0.0, 2.0)));
  CLI::Option* top_p_flag =
      twin(app.add_option("--top-p", top_p, "Choose among the likeliest tokens of this total share")
               ->check(CLI::Range(0.0, 1.0)));
  CLI::Option* top_k_flag =
      twin(app.add_option("--top-k", top_k, "Choose among this many likeliest tokens; 0: all"));
  CLI::Option* seed_flag =
      twin(app.add_option("--seed", seed, "Gives the same answers again with the same model"));
  CLI::Option* max_new_tokens_flag =
      twin(app.add_option("--max-new-tokens", max_new_tokens, "Longest answer, in tokens")
               ->check(CLI::Range(uint32_t{1}, UINT32_MAX)));
  bool json = false;
  std::string schema_file;
  CLI::Option* json_flag = twin(app.add_flag("--json", json, "Answers are JSON objects"));
  twin(app.add_option("--json-schema", schema_file,
                      "Answers are JSON texts that fit the schema in this file")
           ->type_name("PATH"))
      ->excludes(json_flag);
  CLI::Option* session =
      twin(app.add_option("--session", options.session, "Go on with this session; it is kept")
               ->type_name("ID"));
  twin(app.add_flag("--keep-session", options.keep_session,
                    "Keep the session at the end (it is deleted otherwise) and print its id"));
  twin(app.add_option("--message", options.messages, "Ask this and end; may be given several times")
           ->type_name("TEXT")
           ->allow_extra_args(false));
  system->excludes(session);

  try {
    app.parse(argc, argv);
    if (!schema_file.empty()) {
      options.sampling.mutable_constraint()->set_json_schema(
          ReadFlagFile("--json-schema", schema_file));
    }
    if (json) options.sampling.mutable_constraint()->mutable_json_object();
    auto read = access.Read();
    options.api_key = std::move(read.api_key);
    options.tls = std::move(read.tls);
  } catch (const CLI::CallForHelp&) {
    std::cout << app.help();
    return 0;
  } catch (const CLI::CallForVersion& version) {
    std::cout << version.what() << '\n';
    return 0;
  } catch (const CLI::ParseError& error) {
    std::cerr << "llava-chat: " << error.what() << " (see llava-chat --help)\n";
    return 2;
  }
  if (*temperature_flag) options.sampling.set_temperature(static_cast<float>(temperature));
  if (*top_p_flag) options.sampling.set_top_p(static_cast<float>(top_p));
  if (*top_k_flag) options.sampling.set_top_k(top_k);
  if (*seed_flag) options.sampling.set_seed(seed);
  if (*max_new_tokens_flag) options.sampling.set_max_new_tokens(max_new_tokens);
  return options;
}

}  // namespace llava
