#pragma once

// The conversation in a request of the OpenAI API.

#include "llava/v1/chat.pb.h"
#include "server/gateway/openai_fields.h"

namespace llava::openai {

// Of the field "messages". Pictures are data URIs or, if `urls`, URLs.
Reader Messages(v1::ChatRequest& chat, bool urls);

}  // namespace llava::openai
