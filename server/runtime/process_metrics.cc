#include "server/runtime/process_metrics.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <system_error>

#include "server/runtime/tls_files.h"

namespace llava {

void ShowProcess(Metrics& metrics) {
  if (uint64_t pages = 0, resident = 0; std::ifstream("/proc/self/statm") >> pages >> resident) {
    metrics.Gauge("llava_process_resident_memory_bytes", "Memory of this process.")
        .Set(static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)));
  }
  std::error_code error;  // as when no descriptor is left
  int count = -1;         // not the one to count with
  std::filesystem::directory_iterator file("/proc/self/fd", error);
  for (; !error && file != std::filesystem::directory_iterator(); file.increment(error)) ++count;
  if (!error) {
    metrics.Gauge("llava_process_open_fds", "Open descriptors of this process.").Set(count);
  }
  for (const auto& [file, expires] : CertificateExpiries()) {
    metrics
        .Gauge("llava_tls_certificate_expires_seconds",
               "When a certificate in use, or one above it in its file, expires; Unix time.",
               {{"file", file}})
        .Set(static_cast<double>(expires));
  }
}

}  // namespace llava
