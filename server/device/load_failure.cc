#include "server/device/load_failure.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <new>
#include <stdexcept>
#include <system_error>

#include "absl/strings/match.h"
#include "model/checkpoint/checkpoint.h"
#include "server/runtime/status.h"

namespace llava {

absl::Status WhyNotOpened(const std::string& path, std::exception_ptr failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const OpenStopped& error) {
    return absl::CancelledError(error.what());
  } catch (const std::invalid_argument& error) {
    return absl::InvalidArgumentError(error.what());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory");
  } catch (...) {
    const absl::Status status = FromException(failure);
    const std::string why(status.message());
    // As LibTorch and our launcher of kernels begin what they say.
    const bool cuda = absl::StartsWith(why, "CUDA error") || absl::StartsWith(why, "CUDA: ");
    if (absl::IsResourceExhausted(status) || cuda) return status;
    std::error_code error;
    const bool there = std::filesystem::exists(path, error);
    if (error == std::errc::permission_denied || absl::StrContains(why, std::strerror(EACCES))) {
      return absl::PermissionDeniedError(why);
    }
    return there ? absl::DataLossError(why) : absl::NotFoundError(why);
  }
}

}  // namespace llava
