#pragma once

// SHA-256 (FIPS 180-4): names pictures, towers, tokenizers and checkpoint files by content.
// Own code so that the model core builds without OpenSSL.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace llava {

using Sha256Digest = std::array<uint8_t, 32>;

// Incremental hash. One thread.
class Sha256 {
 public:
  // kBest: the processor's SHA instructions where it has them. Same digests.
  enum class Implementation { kBest, kPortable };

  Sha256();
  explicit Sha256(Implementation implementation);
  void Update(std::span<const uint8_t> bytes);
  void Update(std::string_view bytes);
  // As Update of each of `hashes`, which differ, by `bytes` of its own from `data`. Several are
  // faster together than one after the other where MostTogether() is more than 1 and every one has
  // had a multiple of 64 bytes so far.
  static void UpdateTogether(std::span<Sha256* const> hashes, std::span<const uint8_t* const> data,
                             size_t bytes);
  // Of how many one thread makes the most.
  static int MostTogether();
  // Ends the hash; the object must not be used afterwards.
  Sha256Digest Finish();

 private:
  void (*compress_)(uint32_t* state, const uint8_t* data, size_t blocks);
  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> buffer_;
  uint64_t size_ = 0;  // bytes so far
};

Sha256Digest HashBytes(std::string_view bytes);
// Reads in pieces of 1 MiB. Throws std::runtime_error naming the path if it cannot be read.
Sha256Digest HashFile(const std::string& path);

// Lower-case hex, 64 characters.
std::string ToHex(const Sha256Digest& digest);
// Throws std::invalid_argument unless `hex` is 64 hex digits.
Sha256Digest FromHex(std::string_view hex);
// The 32 raw bytes, as they travel on the wire.
std::string ToBytes(const Sha256Digest& digest);

}  // namespace llava
