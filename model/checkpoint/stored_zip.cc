#include "model/checkpoint/stored_zip.h"

#include <cstring>
#include <stdexcept>

namespace llava {
namespace {

constexpr uint32_t kEndSignature = 0x06054b50, kEnd64Signature = 0x06064b50;
constexpr uint32_t kLocator64Signature = 0x07064b50;
constexpr uint32_t kEntrySignature = 0x02014b50, kLocalSignature = 0x04034b50;
constexpr size_t kEndBytes = 22, kLocator64Bytes = 20, kEnd64Bytes = 56;
constexpr size_t kEntryBytes = 46, kLocalBytes = 30;
constexpr uint64_t kMaxComment = 0xffff;
constexpr uint32_t kIn64 = 0xffffffff;  // the value stands in a zip64 field

[[noreturn]] void Fail(const std::string& what) {
  throw std::runtime_error("zip archive: " + what);
}

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  std::span<const uint8_t> Bytes(uint64_t at, uint64_t size) const {
    if (at > bytes_.size() || size > bytes_.size() - at) Fail("is cut off or damaged");
    return bytes_.subspan(at, size);
  }
  template <typename T>
  T Get(uint64_t at) const {
    T value;
    std::memcpy(&value, Bytes(at, sizeof(T)).data(), sizeof(T));
    return value;
  }
  uint64_t size() const { return bytes_.size(); }

 private:
  std::span<const uint8_t> bytes_;
};

uint64_t FindEnd(const Reader& zip) {
  if (zip.size() < kEndBytes) Fail("is cut off: it has " + std::to_string(zip.size()) + " bytes");
  const uint64_t last = zip.size() - kEndBytes;
  const uint64_t first = last > kMaxComment ? last - kMaxComment : 0;
  for (uint64_t at = last + 1; at > first; --at) {
    if (zip.Get<uint32_t>(at - 1) == kEndSignature) return at - 1;
  }
  Fail("has no directory at its end (cut off?)");
}

// Replaces the values that are kIn64 by those of the zip64 field, which holds just these in order.
void ReadZip64(std::span<const uint8_t> extra, uint64_t& size, uint64_t& packed, uint64_t& offset) {
  const Reader reader(extra);
  for (uint64_t at = 0; at + 4 <= extra.size();) {
    const auto id = reader.Get<uint16_t>(at), length = reader.Get<uint16_t>(at + 2);
    if (id == 1) {
      uint64_t field = at + 4;
      for (uint64_t* value : {&size, &packed, &offset}) {
        if (*value != kIn64) continue;
        *value = reader.Get<uint64_t>(field);
        field += 8;
      }
      return;
    }
    at += 4 + length;
  }
}

}  // namespace

std::map<std::string, std::span<const uint8_t>> ListStoredZip(std::span<const uint8_t> archive) {
  const Reader zip(archive);
  const uint64_t end = FindEnd(zip);
  uint64_t count = zip.Get<uint16_t>(end + 10);
  uint64_t at = zip.Get<uint32_t>(end + 16);
  if (end >= kLocator64Bytes && zip.Get<uint32_t>(end - kLocator64Bytes) == kLocator64Signature) {
    const auto end64 = zip.Get<uint64_t>(end - kLocator64Bytes + 8);
    zip.Bytes(end64, kEnd64Bytes);
    if (zip.Get<uint32_t>(end64) != kEnd64Signature) Fail("its zip64 directory is damaged");
    count = zip.Get<uint64_t>(end64 + 32);
    at = zip.Get<uint64_t>(end64 + 48);
  }

  std::map<std::string, std::span<const uint8_t>> entries;
  for (uint64_t i = 0; i < count; ++i) {
    zip.Bytes(at, kEntryBytes);
    if (zip.Get<uint32_t>(at) != kEntrySignature) Fail("its directory is damaged");
    const auto flags = zip.Get<uint16_t>(at + 8), method = zip.Get<uint16_t>(at + 10);
    uint64_t packed = zip.Get<uint32_t>(at + 20), size = zip.Get<uint32_t>(at + 24);
    const auto name_size = zip.Get<uint16_t>(at + 28), extra_size = zip.Get<uint16_t>(at + 30);
    const auto comment_size = zip.Get<uint16_t>(at + 32);
    uint64_t local = zip.Get<uint32_t>(at + 42);
    const auto name_bytes = zip.Bytes(at + kEntryBytes, name_size);
    const std::string name(name_bytes.begin(), name_bytes.end());
    ReadZip64(zip.Bytes(at + kEntryBytes + name_size, extra_size), size, packed, local);
    if (method != 0 || (flags & 1) != 0 || packed != size) {
      Fail("its member \"" + name + "\" is compressed or encrypted");
    }
    zip.Bytes(local, kLocalBytes);
    if (zip.Get<uint32_t>(local) != kLocalSignature) Fail("its member \"" + name + "\" is damaged");
    const uint64_t data =
        local + kLocalBytes + zip.Get<uint16_t>(local + 26) + zip.Get<uint16_t>(local + 28);
    if (!entries.emplace(name, zip.Bytes(data, size)).second) {
      Fail("has two members named \"" + name + "\"");
    }
    at += kEntryBytes + name_size + extra_size + comment_size;
  }
  return entries;
}

}  // namespace llava
