#include "model/tools/common.h"

#include <algorithm>
#include <thread>

namespace llava {

int ThreadsOr(int asked) {
  return asked > 0 ? asked : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void VisitSettings(const nlohmann::json& value, const std::string& name,
                   const SettingVisitor& visit) {
  if (!value.is_object()) {
    visit(name, value.is_string() ? value.get<std::string>() : value.dump());
    return;
  }
  for (const auto& [key, item] : value.items()) {
    VisitSettings(item, name.empty() ? key : name + "." + key, visit);
  }
}

}  // namespace llava
