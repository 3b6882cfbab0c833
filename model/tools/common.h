#pragma once

// What several subcommands of llava-model need.

#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace llava {

// Those that are asked for; 0: one for each core.
int ThreadsOr(int asked);

double Median(std::vector<double> values);

// Calls `visit` for every value of nested objects that is none itself: "a.b", and its text.
using SettingVisitor = std::function<void(const std::string& name, const std::string& text)>;
void VisitSettings(const nlohmann::json& value, const std::string& name,
                   const SettingVisitor& visit);

}  // namespace llava
