#include "model/data/instructions/record_index.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string_view>

namespace llava {
namespace {

constexpr int kEnd = -1;  // what stands behind the last byte

[[noreturn]] void FailSystem(const std::filesystem::path& path, const char* what) {
  throw std::runtime_error(path.string() + ": cannot " + what + ": " + std::strerror(errno));
}

// pread until `size` bytes or the end of the file; the number of bytes read.
size_t ReadAt(int file, const std::filesystem::path& path, char* into, size_t size,
              uint64_t offset) {
  size_t done = 0;
  while (done < size) {
    const ssize_t got = pread(file, into + done, size - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) FailSystem(path, "read");
    if (got == 0) break;
    done += got;
  }
  return done;
}

bool IsSpace(int byte) { return byte == ' ' || byte == '\n' || byte == '\t' || byte == '\r'; }

// Bytes one after the other.
class Bytes {
 public:
  Bytes(int file, const std::filesystem::path& path) : file_(file), path_(path) {}

  uint64_t position() const { return begin_ + next_; }
  int Peek() {
    return next_ < buffer_.size() || Fill() ? static_cast<uint8_t>(buffer_[next_]) : kEnd;
  }
  int Next() {
    const int byte = Peek();
    if (byte != kEnd) ++next_;
    return byte;
  }
  void Seek(uint64_t position) {
    begin_ = position;
    next_ = 0;
    buffer_.clear();
  }
  int SkipSpace() {
    while (IsSpace(Peek())) Next();
    return Peek();
  }

 private:
  bool Fill() {
    begin_ += buffer_.size();
    next_ = 0;
    buffer_.resize(1 << 20);
    buffer_.resize(ReadAt(file_, path_, buffer_.data(), buffer_.size(), begin_));
    return !buffer_.empty();
  }

  int file_;
  const std::filesystem::path& path_;
  std::string buffer_;
  uint64_t begin_ = 0;  // of the buffer in the file
  size_t next_ = 0;
};

std::string Shown(int byte) {
  if (byte == kEnd) return "the end of the file";
  return byte < ' ' ? "control character " + std::to_string(byte)
                    : std::string("'") + static_cast<char>(byte) + "'";
}

std::string Fault(int byte, const std::string& where, uint64_t at) {
  return Shown(byte) + " " + where + " (at byte " + std::to_string(at) + " of the file)";
}

}  // namespace

// Finds the elements, and what is wrong within and between them.
class RecordIndex::Scanner {
 public:
  Scanner(Bytes& bytes, RecordIndex& index) : bytes_(bytes), index_(index) {}

  // From behind the array's first bracket.
  void ScanArray() {
    if (bytes_.SkipSpace() == ']') {
      bytes_.Next();
    } else {
      ScanElements();
    }
    while (bytes_.SkipSpace() != kEnd) {
      Add(bytes_.position(), 0,
          Fault(bytes_.Peek(), "behind the array, where the file should end", bytes_.position()));
      if (!FindRecord()) break;
      ScanElements();
    }
  }

 private:
  void Add(uint64_t offset, uint64_t size, const std::string& fault) {
    if (!fault.empty()) index_.faults_[index_.size()] = fault;
    index_.places_.push_back({offset, size});
  }

  // To behind the array's last bracket, or to the end of the file.
  void ScanElements() {
    while (true) {
      bytes_.SkipSpace();
      const uint64_t begin = bytes_.position();
      std::string fault = SkipValue();
      uint64_t end = bytes_.position();
      if (fault.empty()) {
        const int next = bytes_.SkipSpace();
        const uint64_t at = bytes_.position();
        if (next == ',' || next == ']') {
          bytes_.Next();
          Add(begin, end - begin, "");
          if (next == ']') return;
          continue;
        }
        if (next == kEnd) {
          Add(begin, end - begin, "");
          Add(end, 0, "the file ends without the array's ']'");
          return;
        }
        fault = Fault(next, "behind the record, where ',' or ']' belongs", at);
      } else {
        bytes_.Seek(begin + 1);  // the fault may have swallowed the next record
      }
      const bool found = FindRecord();
      end = std::min(end, bytes_.position());
      Add(begin, end - begin, fault);
      if (!found) return;
    }
  }

  // One value; brackets and quotes are matched, the rest is left to the parser. Ends in front of
  // the comma or bracket behind it. Returns what is wrong.
  std::string SkipValue() {
    std::string open;  // brackets
    do {
      const int next = bytes_.SkipSpace();
      if (open.empty() && (next == ',' || next == ']')) break;
      const uint64_t at = bytes_.position();
      const int byte = bytes_.Next();
      if (byte == '{' || byte == '[') {
        open.push_back(static_cast<char>(byte));
      } else if (byte == '}' || byte == ']') {
        const char opening = byte == '}' ? '{' : '[';
        if (open.empty() || open.back() != opening) return Fault(byte, "without its partner", at);
        open.pop_back();
      } else if (byte == '"') {
        if (std::string fault = SkipString(); !fault.empty()) return fault;
      } else if (byte <= 0 || !std::strchr("0123456789+-.eEtrufalsn,:", byte)) {
        return Fault(byte, "within the record", at);  // letters: true, false, null
      }
    } while (!open.empty());
    return "";
  }

  // The text whose first quote has been read.
  std::string SkipString() {
    while (true) {
      const uint64_t at = bytes_.position();
      const int byte = bytes_.Next();
      if (byte == '"') return "";
      if (byte < ' ') return Fault(byte, "within a text", at);
      if (byte == '\\' && bytes_.Next() == kEnd) return Fault(kEnd, "within a text", at);
    }
  }

  // Goes to the next object that begins like a record; false if there is none.
  bool FindRecord() {
    for (int byte; (byte = bytes_.Peek()) != kEnd; bytes_.Next()) {
      if (byte != '{') continue;
      const uint64_t at = bytes_.position();
      bytes_.Next();
      const bool found = bytes_.SkipSpace() == '"' && BeginsLikeRecord();
      bytes_.Seek(at);
      if (found) return true;
    }
    return false;
  }

  bool BeginsLikeRecord() {
    bytes_.Next();
    std::string key;
    while (key.size() < 16 && bytes_.Peek() != '"' && bytes_.Peek() >= ' ') {
      key.push_back(static_cast<char>(bytes_.Next()));
    }
    if (bytes_.Next() != '"' || bytes_.SkipSpace() != ':') return false;
    return key == "id" || key == "image" || key == "conversations";
  }

  Bytes& bytes_;
  RecordIndex& index_;
};

RecordIndex::RecordIndex(const std::filesystem::path& path) : path_(path) {
  file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file_ < 0) FailSystem(path, "open");
  try {
    Bytes bytes(file_, path_);
    if (bytes.Peek() == 0xEF) bytes.Seek(3);  // byte order mark
    if (const int first = bytes.SkipSpace(); first != '[') {
      throw std::runtime_error(path.string() + ": expected a JSON array of records, found " +
                               Shown(first));
    }
    bytes.Next();
    Scanner(bytes, *this).ScanArray();
  } catch (...) {
    close(file_);
    throw;
  }
}

RecordIndex::~RecordIndex() { close(file_); }

std::string RecordIndex::Read(int64_t number) const {
  const Place& place = places_.at(number);
  std::string text(place.size, '\0');
  if (ReadAt(file_, path_, text.data(), text.size(), place.offset) != text.size()) {
    throw std::runtime_error(path_.string() + ": has become shorter while it was in use");
  }
  return text;
}

std::string RecordIndex::FaultOf(int64_t number) const {
  const auto fault = faults_.find(number);
  return fault == faults_.end() ? "" : fault->second;
}

}  // namespace llava
