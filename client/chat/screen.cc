#include "client/chat/screen.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "client/chat/utf8.h"

namespace llava {
namespace {

bool Write(std::FILE* file, std::string_view text) {
  return std::fwrite(text.data(), 1, text.size(), file) == text.size() && std::fflush(file) == 0;
}

}  // namespace

Screen::Screen(std::FILE* out, std::FILE* err)
    : out_(out),
      err_(err),
      out_is_terminal_(isatty(fileno(out)) == 1),
      err_is_terminal_(isatty(fileno(err)) == 1) {}

void Screen::Answer(std::string_view text) {
  if (text.empty()) return;
  line_open_ = text.back() != '\n';
  WriteAnswer(out_is_terminal_ ? WithoutControls(text) : std::string(text));
}

void Screen::WriteAnswer(std::string_view text) {
  if (!fault_.empty()) return;  // a gap would not show
  if (!Write(out_, text)) fault_ = std::strerror(errno);
}

void Screen::EndAnswer() {
  if (line_open_) WriteAnswer("\n");
  line_open_ = false;
}

void Screen::Remark(std::string_view text) { Line(text, "\033[2m", "\033[0m"); }

void Screen::Error(std::string_view text) { Line(text, "\033[31m", "\033[0m"); }

void Screen::Line(std::string_view text, const char* before, const char* after) {
  if (err_is_terminal_) {
    Write(err_, before + WithoutControls(text) + after + "\n");
  } else {
    Write(err_, std::string(text) + "\n");
  }
}

void Screen::Prompt(std::string_view text) {
  if (out_is_terminal_) Write(out_, text);
}

}  // namespace llava
