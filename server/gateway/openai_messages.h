#pragma once

// The conversation in a request of the OpenAI API.

#include <vector>

#include "llava/v1/chat.pb.h"
#include "server/gateway/openai_fields.h"
#include "server/gateway/openai_json.h"

namespace llava::openai {

// Of the field "messages". Pictures are data URIs or, if `urls`, URLs.
Reader Messages(v1::ChatRequest& chat, std::vector<MessagePlace>& places, bool urls);

}  // namespace llava::openai
