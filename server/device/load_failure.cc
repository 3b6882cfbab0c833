#include "server/device/load_failure.h"

#include <new>

#include "absl/strings/match.h"
#include "server/runtime/service_process.h"
#include "server/runtime/status.h"

namespace llava {

absl::Status MachineFault(std::exception_ptr failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory");
  } catch (...) {
    const absl::Status status = FromException(std::current_exception());
    // As LibTorch and our launcher of kernels begin what they say.
    const bool cuda = absl::StartsWith(status.message(), "CUDA error") ||
                      absl::StartsWith(status.message(), "CUDA: ");
    return absl::IsResourceExhausted(status) || cuda ? status : absl::OkStatus();
  }
}

int ReportLoadFailure(const std::string& program, const absl::Status& status) {
  PrintError(program, std::string(status.message()));
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return kExitUsage;
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kPermissionDenied:
      return kExitModelMissing;
    case absl::StatusCode::kFailedPrecondition:
      return kExitDeviceMissing;
    case absl::StatusCode::kResourceExhausted:
      return kExitNoMemory;
    default:
      return 1;
  }
}

}  // namespace llava
