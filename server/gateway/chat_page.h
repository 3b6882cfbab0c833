#pragma once

#include "server/runtime/http_message.h"

namespace llava {

// The built-in chat page (chat_page.html) with a policy under which it runs its own script, shows
// its own pictures and talks to its own server, and nothing else.
HttpResponse ChatPage();

}  // namespace llava
