#pragma once

#include <exception>
#include <string>

namespace llava {

// What the exception of this call says, "" if it throws none. One of another type than Error is
// left to fail the test.
template <typename Error = std::exception, typename Call>
std::string ErrorOf(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace llava
