#pragma once

// Tables of text: lines of fields.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace llava {

// Reads a file row by row. Commas (RFC 4180: fields in quotes may hold commas, line ends and
// doubled quotes) or tabs (no quotes). Empty lines are skipped. One thread.
class DelimitedFile {
 public:
  enum class Format { kCsv, kTsv };

  // All throw std::invalid_argument beginning with "path:line: ".
  DelimitedFile(std::filesystem::path path, Format format);

  // The next row, false at the end.
  bool Next(std::vector<std::string>& fields);
  // Of the row last read, from 1: where it begins.
  uint64_t line() const { return line_; }
  [[noreturn]] void Fail(const std::string& what) const;  // about that row

 private:
  bool NextLine(std::string& text);
  void SplitQuoted(std::string text, std::vector<std::string>& fields);

  std::filesystem::path path_;
  Format format_;
  std::ifstream file_;
  uint64_t line_ = 0, lines_read_ = 0;
};

// `field` as a field of a CSV file, in quotes if need be.
std::string CsvField(const std::string& field);

}  // namespace llava
