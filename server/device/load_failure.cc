#include "server/device/load_failure.h"

#include "server/runtime/service_process.h"

namespace llava {

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
