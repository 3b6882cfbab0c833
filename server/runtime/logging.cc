#include "server/runtime/logging.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace llava {
namespace {

struct Format {
  std::string service;
  bool json = false;
};
Format& format() {
  static Format instance;
  return instance;
}

// Errors quote what strangers wrote. Checks bound it first; this is for one that was forgotten.
constexpr size_t kMaxValueBytes = 2048;

std::string Value(const LogField& field) {
  const std::string_view value = field.value;
  if (value.size() <= kMaxValueBytes) return std::string(value);
  return absl::StrCat(std::string(value.substr(0, kMaxValueBytes)), "... (", value.size(),
                      " bytes)");
}

void Write(spdlog::level::level_enum level, std::string_view message, LogFields fields) {
  if (!spdlog::should_log(level)) return;
  std::string line;
  if (format().json) {
    nlohmann::ordered_json record;
    record["ts"] = absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone());
    record["level"] = std::string(to_string_view(level).data(), to_string_view(level).size());
    record["service"] = format().service;
    record["msg"] = message;
    for (const LogField& field : fields) record[std::string(field.key)] = Value(field);
    // Peers' error texts may hold any bytes: broken UTF-8 becomes U+FFFD.
    line = record.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  } else {
    line = message;
    for (const LogField& field : fields) {
      line += ' ';
      line += field.key;
      line += '=';
      const std::string value = Value(field);
      // Nothing that a stranger wrote may look like another field or line, or move the cursor.
      const bool plain = std::all_of(value.begin(), value.end(),
                                     [](char c) { return c > ' ' && c <= '~' && c != '"'; });
      line += plain ? value
                    : nlohmann::json(value).dump(-1, ' ', true,
                                                 nlohmann::json::error_handler_t::replace);
    }
  }
  spdlog::log(level, "{}", line);
}

}  // namespace

void InitLogging(const LoggingOptions& options) {
  format() = {options.service, options.format == "json"};
  auto logger = std::make_shared<spdlog::logger>(options.service,
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_level(spdlog::level::from_str(options.level));
  logger->flush_on(spdlog::level::trace);
  logger->set_pattern(options.format == "json" ? "%v" : "%Y-%m-%d %H:%M:%S.%e %^%l%$ [%n] %v");
  spdlog::set_default_logger(logger);
}

void LogDebug(std::string_view message, LogFields fields) {
  Write(spdlog::level::debug, message, fields);
}
void LogInfo(std::string_view message, LogFields fields) {
  Write(spdlog::level::info, message, fields);
}
void LogWarning(std::string_view message, LogFields fields) {
  Write(spdlog::level::warn, message, fields);
}
void LogError(std::string_view message, LogFields fields) {
  Write(spdlog::level::err, message, fields);
}

}  // namespace llava
