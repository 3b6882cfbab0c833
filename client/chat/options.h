#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "client/chat_client.h"
#include "llava/v1/types.pb.h"

namespace llava {

// What the command line and the environment say.
struct ChatOptions {
  std::string gateway = "127.0.0.1:8001";
  std::string api_key;                // from a file or the environment, never from a flag
  std::optional<ChatClientTls> tls;   // set by any of the --tls flags
  std::string image;                  // path of the first question's picture; empty: none
  std::string model;                  // empty: the gateway's default
  std::optional<std::string> system;  // replaces the model's system text
  v1::SamplingParams sampling;        // only what was given is set
  std::string session;                // an old session to go on with
  bool keep_session = false;
  std::vector<std::string> messages;  // asked in order instead of reading lines
};

// The options, or the exit status of a program that has said all (--help: 0, a wrong flag: 2).
std::variant<ChatOptions, int> ParseChatOptions(int argc, const char* const* argv);

}  // namespace llava
