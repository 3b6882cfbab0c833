#include "model/datagen/delimited_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace llava {

DelimitedFile::DelimitedFile(std::filesystem::path path, Format format)
    : path_(std::move(path)), format_(format), file_(path_, std::ios::binary) {
  if (!file_) {
    throw std::invalid_argument(path_.string() + ": cannot be read: " + std::strerror(errno));
  }
}

bool DelimitedFile::Next(std::vector<std::string>& fields) {
  fields.clear();
  std::string text;
  do {
    if (!NextLine(text)) return false;
  } while (text.empty());
  line_ = lines_read_;
  if (format_ == Format::kCsv) {
    SplitQuoted(std::move(text), fields);
    return true;
  }
  for (size_t begin = 0, end; begin <= text.size(); begin = end + 1) {
    end = std::min(text.find('\t', begin), text.size());
    fields.push_back(text.substr(begin, end - begin));
  }
  return true;
}

// A line without its end, which may be "\r\n"; the mark of UTF-8 at the file's begin is dropped.
bool DelimitedFile::NextLine(std::string& text) {
  if (!std::getline(file_, text)) {
    if (file_.bad()) Fail("cannot be read");
    return false;
  }
  if (text.ends_with('\r')) text.pop_back();
  if (lines_read_++ == 0 && text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  return true;
}

void DelimitedFile::SplitQuoted(std::string text, std::vector<std::string>& fields) {
  size_t at = 0;
  while (true) {
    std::string field;
    if (at < text.size() && text[at] == '"') {
      ++at;
      while (true) {
        const size_t quote = text.find('"', at);
        if (quote == text.npos) {  // the field goes on in the next line
          field += text.substr(at) + "\n";
          if (!NextLine(text)) Fail("a field in quotes does not end");
          at = 0;
          continue;
        }
        field.append(text, at, quote - at);
        at = quote + 1;
        if (at < text.size() && text[at] == '"') {
          field += '"';
          ++at;
          continue;
        }
        break;
      }
      if (at < text.size() && text[at] != ',') Fail("text behind the quotes of a field");
    } else {
      const size_t end = std::min(text.find(',', at), text.size());
      field = text.substr(at, end - at);
      if (field.find('"') != field.npos) Fail("a quote within a field that has none around it");
      at = end;
    }
    fields.push_back(std::move(field));
    if (at == text.size()) return;
    ++at;  // behind the comma
  }
}

void DelimitedFile::Fail(const std::string& what) const {
  throw std::invalid_argument(path_.string() + ":" + std::to_string(line_) + ": " + what);
}

std::string CsvField(const std::string& field) {
  if (field.find_first_of("\",\r\n") == field.npos) return field;
  std::string quoted = "\"";
  for (const char byte : field) {
    if (byte == '"') quoted += '"';
    quoted += byte;
  }
  return quoted + "\"";
}

}  // namespace llava
