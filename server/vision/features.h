#pragma once

// What the vision service computes, apart from any transport.

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "model/config/model_config.h"
#include "server/vision/byte_budget.h"

namespace llava {

// Z_v of one picture. Const once shared.
struct Features {
  std::string key;    // FeatureKeyToBytes of the wire's key
  std::string bytes;  // bfloat16 [rows, width], little-endian, row-major
  int64_t rows = 0;
  int64_t width = 0;
  uint32_t crc32c = 0;
  uint32_t image_width = 0;  // pixels of the decoded picture
  uint32_t image_height = 0;
};

// Times of one request.
struct EncodeTimes {
  double queue_seconds = 0;    // waiting for a decoder and for a batch
  double compute_seconds = 0;  // decoding and the tower
};

// One request that waits for features. Several may wait for the same ones.
class EncodeCall {
 public:
  using Clock = std::chrono::steady_clock;
  virtual ~EncodeCall() = default;

  // The engine's: bytes of the request and of what is made of it. Who keeps the call until its
  // answer is sent may shrink it to that.
  ByteBudget::Hold held;

  // Called exactly once, on a thread of the engine, with no lock held.
  virtual void Done(std::shared_ptr<const Features> features, bool cached,
                    const EncodeTimes& times) = 0;
  virtual void Failed(const absl::Status& status) = 0;

  // The client has gone: nobody waits for the result.
  virtual bool gone() const = 0;
  virtual Clock::time_point deadline() const = 0;
};

}  // namespace llava
