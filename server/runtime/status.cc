#include "server/runtime/status.h"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace llava {
namespace {

// absl allows one payload per URL; ours are packed Any messages, keyed by their type URL.
constexpr char kTypePrefix[] = "type.googleapis.com/";

std::string TypeUrl(const google::protobuf::Message& message) {
  return kTypePrefix + message.GetTypeName();
}

// LibTorch appends hints and its C++ stack to what(); the first line is the message.
std::string FirstLine(std::string text) {
  text.resize(std::min(text.find('\n'), text.size()));
  return text;
}

absl::Status WithRetry(absl::Status status, std::chrono::milliseconds retry_after) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(retry_after.count() / 1000);
  retry.mutable_retry_delay()->set_nanos(retry_after.count() % 1000 * 1'000'000);
  AddDetail(status, retry);
  return status;
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::Status details;
  details.set_code(static_cast<int>(status.code()));
  details.set_message(std::string(status.message()));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    auto* any = details.add_details();
    any->set_type_url(std::string(url));
    any->set_value(std::string(payload));
  });
  // absl's and gRPC's codes are the same numbers.
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
                      details.details_size() > 0 ? details.SerializeAsString() : "");
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& any : details.details()) {
      result.SetPayload(any.type_url(), absl::Cord(any.value()));
    }
  }
  return result;
}

absl::Status FromException(std::exception_ptr exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const std::invalid_argument& error) {
    return absl::InvalidArgumentError(error.what());
  } catch (const std::out_of_range& error) {
    return absl::InvalidArgumentError(error.what());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory; try a smaller request");
  } catch (const std::system_error& error) {
    const std::string message = FirstLine(error.what());
    const bool scarce = error.code() == std::errc::resource_unavailable_try_again ||  // threads
                        error.code() == std::errc::not_enough_memory;
    return scarce ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
  } catch (const std::exception& error) {
    const std::string message = FirstLine(error.what());
    // LibTorch's exceptions for it are none that this room knows.
    for (const char* const words :
         {"out of memory", "not enough memory", "can't allocate memory"}) {
      if (message.find(words) != std::string::npos) return absl::ResourceExhaustedError(message);
    }
    return absl::InternalError(message);
  } catch (...) {
    return absl::InternalError("unknown fault");
  }
}

void AddDetail(absl::Status& status, const google::protobuf::Message& detail) {
  status.SetPayload(TypeUrl(detail), absl::Cord(detail.SerializeAsString()));
}

bool GetDetail(const absl::Status& status, google::protobuf::Message* detail) {
  const auto payload = status.GetPayload(TypeUrl(*detail));
  return payload && detail->ParseFromString(std::string(*payload));
}

std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status) {
  google::rpc::RetryInfo retry;
  if (!GetDetail(status, &retry)) return std::nullopt;
  return std::chrono::milliseconds(retry.retry_delay().seconds() * 1000 +
                                   retry.retry_delay().nanos() / 1'000'000);
}

absl::Status OverloadedError(const std::string& message, std::chrono::milliseconds retry_after) {
  return WithRetry(absl::UnavailableError(message), retry_after);
}

absl::Status LimitError(const std::string& message, std::chrono::milliseconds retry_after) {
  return WithRetry(absl::ResourceExhaustedError(message), retry_after);
}

absl::Status UnimplementedField(const std::string& field) {
  return absl::UnimplementedError("this build has no function for the field \"" + field +
                                  "\"; leave it unset");
}

}  // namespace llava
