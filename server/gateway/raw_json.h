#pragma once

// A value of a JSON text as it was written: in the order in which its members stand.

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace llava {

// The text of the member that the names lead to, one within the other; none if there is no such
// one. Of several with one name the last counts. `json` must be a JSON text.
std::optional<std::string_view> RawMember(std::string_view json,
                                          std::span<const std::string_view> path);

}  // namespace llava
