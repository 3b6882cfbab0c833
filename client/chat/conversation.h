#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "client/chat/interrupts.h"
#include "client/chat/options.h"
#include "client/chat/screen.h"
#include "client/chat_client.h"

namespace llava {

// A conversation at the keyboard: commands, questions, answers on the screen. Errors are shown and
// leave it usable. Not thread-safe.
class Conversation {
 public:
  // All must outlive the conversation.
  Conversation(ChatClient& client, const ChatOptions& options, Screen& screen,
               Interrupts& interrupts);

  // Opens the session and sends the first picture. On an error there is nothing to talk to. A
  // signal ends the program at once while there is no session yet.
  absl::Status Begin();

  // Obeys a command or asks a question; blank lines do nothing. False: it is over (/quit, a signal,
  // nobody who takes the answers).
  bool Handle(std::string_view line);

  // Deletes the session unless it is to be kept.
  void End();

  // True once anything went wrong.
  bool failed() const { return failed_; }
  // The signal that asked the program to end while an answer or a call was under way; 0: none.
  // Behind Begin, SIGINT only stops these, unless set_interrupt_ends(true).
  int end_signal() const { return end_signal_; }
  // When set, SIGINT ends the program as SIGTERM does (nobody is there to type on).
  void set_interrupt_ends(bool ends) { interrupt_ends_ = ends; }

 private:
  absl::Status OpenSession();
  // A call that a signal ends.
  absl::Status Watched(const std::function<absl::Status()>& call);
  absl::Status AttachImage(const std::string& path);
  absl::Status ShowModels();
  absl::Status Reset();
  absl::Status Ask(std::string_view text);
  absl::Status Obey(std::string_view name, std::string_view argument);

  ChatClient& client_;
  const ChatOptions& options_;
  Screen& screen_;
  Interrupts& interrupts_;

  v1::Session session_;
  bool delete_session_ = false;              // it is ours, and not to be kept
  std::vector<std::string> pending_images_;  // ids, for the next question
  bool failed_ = false;
  bool interrupt_ends_ = true;
  int end_signal_ = 0;
};

}  // namespace llava
