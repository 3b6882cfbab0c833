#pragma once

// Log lines on stderr: text for people, JSON lines for machines. Prompts, answers and pictures
// never get in here.

#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace llava {

struct LoggingOptions {
  std::string service;          // "gateway", "vision", "llm"
  std::string level = "info";   // trace, debug, info, warning, error
  std::string format = "text";  // text, json
};

// Once, at start.
void InitLogging(const LoggingOptions& options);

// A named value beside the message: request_id, session_id, model ... Cut beyond 2 KiB.
struct LogField {
  std::string_view key;
  std::string value;
};
using LogFields = std::initializer_list<LogField>;

// Thread-safe. Field order is kept; JSON lines also carry ts (RFC 3339, UTC), level and service.
void LogDebug(std::string_view message, LogFields fields = {});
void LogInfo(std::string_view message, LogFields fields = {});
void LogWarning(std::string_view message, LogFields fields = {});
void LogError(std::string_view message, LogFields fields = {});

}  // namespace llava
