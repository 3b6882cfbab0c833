#include "model/digest/sha256.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "model/digest/sha256_rounds.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace llava {
namespace {

constexpr size_t kBlockBytes = 64;
constexpr size_t kSixteen = 16;
// From so many on, 16 at once are faster than one after the other with the SHA instructions.
constexpr size_t kWorthSixteen = 8;

uint32_t RotateRight(uint32_t x, int n) { return x >> n | x << (32 - n); }

void CompressPortable(uint32_t* state, const uint8_t* data, size_t blocks) {
  for (; blocks > 0; --blocks, data += kBlockBytes) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
      w[i] = uint32_t{data[4 * i]} << 24 | uint32_t{data[4 * i + 1]} << 16 |
             uint32_t{data[4 * i + 2]} << 8 | data[4 * i + 3];
    }
    for (int i = 16; i < 64; ++i) {
      uint32_t s0 = RotateRight(w[i - 15], 7) ^ RotateRight(w[i - 15], 18) ^ w[i - 15] >> 3;
      uint32_t s1 = RotateRight(w[i - 2], 17) ^ RotateRight(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; ++i) {
      uint32_t s1 = RotateRight(e, 6) ^ RotateRight(e, 11) ^ RotateRight(e, 25);
      uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kSha256Rounds[i] + w[i];
      uint32_t s0 = RotateRight(a, 2) ^ RotateRight(a, 13) ^ RotateRight(a, 22);
      uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1;
      d = c, c = b, b = a, a = t1 + t2;
    }
    const uint32_t v[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state[i] += v[i];
  }
}

#if defined(__x86_64__)
// The instructions want the state as two vectors, ABEF and CDGH, and run four rounds at a time.
__attribute__((target("sha,sse4.1,ssse3"))) void CompressShaNi(uint32_t* state, const uint8_t* data,
                                                               size_t blocks) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  __m128i dcba = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state));
  __m128i hgfe = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state + 4));
  __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1), efgh = _mm_shuffle_epi32(hgfe, 0x1b);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
  for (; blocks > 0; --blocks, data += kBlockBytes) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];  // the last 16 words of the message schedule, four by four
    for (int i = 0; i < 16; ++i) {
      __m128i& now = w[i % 4];
      if (i < 4) {
        now = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + 16 * i));
        now = _mm_shuffle_epi8(now, big_endian);
      } else {
        const __m128i &ago2 = w[(i + 2) % 4], &ago1 = w[(i + 3) % 4];
        now = _mm_sha256msg1_epu32(now, w[(i + 1) % 4]);
        now = _mm_add_epi32(now, _mm_alignr_epi8(ago1, ago2, 4));
        now = _mm_sha256msg2_epu32(now, ago1);
      }
      __m128i in = _mm_add_epi32(now, _mm_load_si128(reinterpret_cast<const __m128i*>(
                                          kSha256Rounds + static_cast<ptrdiff_t>(4) * i)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, in);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(in, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

// Not __builtin_cpu_supports: GCC knows the name "sha" only from version 14 on.
bool HaveShaNi() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) &&
         __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("ssse3");
}
#endif

using Compress = void (*)(uint32_t*, const uint8_t*, size_t);

Compress BestCompress() {
#if defined(__x86_64__)
  if (HaveShaNi()) return CompressShaNi;
#endif
  return CompressPortable;
}

bool HaveSixteen() {
  static const bool have = HaveCompressSixteen();
  return have;
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

Sha256::Sha256() : Sha256(Implementation::kBest) {}

Sha256::Sha256(Implementation implementation)
    : compress_(implementation == Implementation::kBest ? BestCompress() : CompressPortable),
      state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {}

void Sha256::Update(std::span<const uint8_t> bytes) {
  if (bytes.empty()) return;
  size_t filled = size_ % kBlockBytes;
  size_ += bytes.size();
  if (filled > 0) {
    size_t take = std::min(bytes.size(), kBlockBytes - filled);
    std::memcpy(buffer_.data() + filled, bytes.data(), take);
    bytes = bytes.subspan(take);
    if (filled + take < kBlockBytes) return;
    compress_(state_.data(), buffer_.data(), 1);
  }
  compress_(state_.data(), bytes.data(), bytes.size() / kBlockBytes);
  bytes = bytes.subspan(bytes.size() / kBlockBytes * kBlockBytes);
  std::copy(bytes.begin(), bytes.end(), buffer_.begin());
}

void Sha256::Update(std::string_view bytes) {
  Update(std::span(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()));
}

int Sha256::MostTogether() { return HaveSixteen() ? static_cast<int>(kSixteen) : 1; }

void Sha256::UpdateTogether(std::span<Sha256* const> hashes, std::span<const uint8_t* const> data,
                            size_t bytes) {
  const Compress best = BestCompress();
  const bool whole = std::all_of(hashes.begin(), hashes.end(), [best](const Sha256* hash) {
    return hash->size_ % kBlockBytes == 0 && hash->compress_ == best;
  });
  size_t done = 0;
  if (whole && HaveSixteen() && hashes.size() >= kWorthSixteen) {
    const size_t blocks = bytes / kBlockBytes;
    for (; hashes.size() - done >= kWorthSixteen;
         done += std::min(kSixteen, hashes.size() - done)) {
      const size_t here = std::min(kSixteen, hashes.size() - done);
      std::array<uint32_t, 8> nobodys{};
      uint32_t* states[kSixteen];
      const uint8_t* from[kSixteen];
      for (size_t i = 0; i < kSixteen; ++i) {
        states[i] = i < here ? hashes[done + i]->state_.data() : nobodys.data();
        from[i] = data[done + (i < here ? i : 0)];
      }
      CompressSixteen(states, from, blocks);
      for (size_t i = done; i < done + here; ++i) {
        hashes[i]->size_ += blocks * kBlockBytes;
        hashes[i]->Update(std::span(data[i], bytes).subspan(blocks * kBlockBytes));
      }
    }
  }
  for (; done < hashes.size(); ++done) hashes[done]->Update(std::span(data[done], bytes));
}

Sha256Digest Sha256::Finish() {
  const uint64_t bits = size_ * 8;
  uint8_t tail[2 * kBlockBytes] = {};
  size_t filled = size_ % kBlockBytes;
  std::copy_n(buffer_.begin(), filled, tail);
  tail[filled] = 0x80;
  size_t length = filled < kBlockBytes - 8 ? kBlockBytes : 2 * kBlockBytes;
  for (int i = 0; i < 8; ++i) tail[length - 1 - i] = static_cast<uint8_t>(bits >> (8 * i));
  compress_(state_.data(), tail, length / kBlockBytes);
  Sha256Digest digest;
  for (int i = 0; i < 32; ++i) {
    digest[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
  }
  return digest;
}

Sha256Digest HashBytes(std::string_view bytes) {
  Sha256 hash;
  hash.Update(bytes);
  return hash.Finish();
}

Sha256Digest HashFile(const std::string& path) {
  auto fail = [&path] {
    throw std::runtime_error("cannot read " + path + " to hash it: " + std::strerror(errno));
  };
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) fail();
  std::setvbuf(file.get(), nullptr, _IONBF, 0);
  std::vector<uint8_t> piece(1 << 20);
  Sha256 hash;
  for (;;) {
    size_t count = std::fread(piece.data(), 1, piece.size(), file.get());
    hash.Update(std::span(piece.data(), count));
    if (count < piece.size()) break;
  }
  if (std::ferror(file.get())) fail();
  return hash.Finish();
}

std::string ToHex(const Sha256Digest& digest) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (uint8_t byte : digest) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

Sha256Digest FromHex(std::string_view hex) {
  Sha256Digest digest;
  bool good = hex.size() == 2 * digest.size();
  for (size_t i = 0; good && i < digest.size(); ++i) {
    int high = HexValue(hex[2 * i]), low = HexValue(hex[2 * i + 1]);
    good = high >= 0 && low >= 0;
    digest[i] = static_cast<uint8_t>(high << 4 | low);
  }
  if (!good) {
    throw std::invalid_argument("not a SHA-256 in 64 hex digits: \"" +
                                std::string(hex.substr(0, 80)) + "\"");
  }
  return digest;
}

std::string ToBytes(const Sha256Digest& digest) {
  return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
}

}  // namespace llava
