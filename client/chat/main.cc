// llava-chat: talks with a llava gateway at the keyboard, from a pipe or from flags.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <variant>

#include "absl/strings/str_cat.h"
#include "client/chat/conversation.h"
#include "client/chat/interrupts.h"
#include "client/chat/line_reader.h"
#include "client/chat/options.h"
#include "client/chat/report.h"
#include "client/chat/screen.h"
#include "client/chat_client.h"

namespace llava {
namespace {

// A gateway that ends to be replaced refuses for as long as its answers take, half a minute or so.
constexpr std::chrono::minutes kRefusalTimeout{1};

// Asks the questions of --message. Returns the signal that ended it, 0 if none did.
int AskAll(Conversation& conversation, const ChatOptions& options, Screen& screen) {
  conversation.set_interrupt_ends(true);
  for (const std::string& message : options.messages) {
    screen.Remark(absl::StrCat("> ", message));
    if (!conversation.Handle(message)) break;
  }
  return conversation.end_signal();
}

// Handles lines until their end. Returns the signal that ended it, 0 if none did.
int Talk(Conversation& conversation, Screen& screen, Interrupts& interrupts) {
  const bool at_keyboard = isatty(STDIN_FILENO) == 1;
  conversation.set_interrupt_ends(!at_keyboard);
  LineReader lines(STDIN_FILENO, interrupts);
  bool interrupted = false;  // at the prompt, since the last line
  while (true) {
    if (at_keyboard) screen.Prompt("> ");
    const LineReader::Result input = lines.Next();
    if (input.line) {
      interrupted = false;
      if (!at_keyboard) screen.Remark(absl::StrCat("> ", *input.line));
      if (!conversation.Handle(*input.line)) return conversation.end_signal();
    } else if (input.signal == SIGINT && at_keyboard && !interrupted) {
      interrupted = true;
      screen.Prompt("\n");
      screen.Remark("Ctrl-C again (or Ctrl-D, or /quit) ends the chat");
    } else {
      if (at_keyboard) screen.Prompt("\n");
      return at_keyboard && input.signal == SIGINT ? 0 : input.signal;
    }
  }
}

int Main(int argc, char** argv) {
  const std::variant<ChatOptions, int> parsed = ParseChatOptions(argc, argv);
  if (const int* status = std::get_if<int>(&parsed)) return *status;
  const ChatOptions& options = std::get<ChatOptions>(parsed);

  signal(SIGPIPE, SIG_IGN);  // a pipe that nobody reads is told by Screen::fault
  Interrupts interrupts;     // before gRPC begins threads
  Screen screen(stdout, stderr);
  ChatClient client({.gateway = options.gateway,
                     .api_key = options.api_key,
                     .tls = options.tls,
                     .refusal_timeout = kRefusalTimeout,
                     .on_refusal = [&screen](const absl::Status& why) {
                       screen.Remark(absl::StrCat("refused for now: ", why.message(),
                                                  "; asked again for a minute (Ctrl-C ends that)"));
                     }});
  Conversation conversation(client, options, screen, interrupts);
  if (const absl::Status status = conversation.Begin(); !status.ok()) {
    if (conversation.end_signal() != 0) return 128 + conversation.end_signal();
    screen.Error(absl::StrCat("llava-chat: ", ErrorLine(status)));
    return 1;
  }
  const int ended_by = options.messages.empty() ? Talk(conversation, screen, interrupts)
                                                : AskAll(conversation, options, screen);
  conversation.End();
  if (ended_by != 0) return 128 + ended_by;
  if (!screen.fault().empty()) return 1;
  // At the keyboard errors were seen and dealt with; a script needs the exit status.
  const bool scripted = !options.messages.empty() || isatty(STDIN_FILENO) == 0;
  return scripted && conversation.failed() ? 1 : 0;
}

}  // namespace
}  // namespace llava

int main(int argc, char** argv) { return llava::Main(argc, argv); }
