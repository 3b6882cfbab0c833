#pragma once

// Names of feature tensors, the same wherever they are made: the gateway builds a key to ask for,
// the vision service to cache under, the LLM service to look up.

#include <functional>
#include <set>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/types.pb.h"
#include "model/digest/sha256.h"

namespace llava {

// SHA-256 over the spec's fields; the bytes hashed are told in the proto comment of FeatureKey and
// do not depend on protobuf's serialisation. Equal digests mean equal specs.
Sha256Digest SpecDigest(const v1::VisionSpec& spec);

// `image_sha256`: digest of the encoded picture. `numerics`: ModelInfo.numerics of the tower.
v1::FeatureKey MakeFeatureKey(const Sha256Digest& image_sha256, const v1::VisionSpec& spec,
                              const std::string& numerics);

// INVALID_ARGUMENT naming the field unless both digests have 32 bytes and numerics 1 to 64.
absl::Status CheckFeatureKey(const v1::FeatureKey& key);
// The same for a spec: a digest of 32 bytes, a mode and a feature that are set, a grid exactly for
// the anyres mode.
absl::Status CheckVisionSpec(const v1::VisionSpec& spec);

// A unique string for maps (binary) of a key that passed CheckFeatureKey, and back.
std::string FeatureKeyToBytes(const v1::FeatureKey& key);
v1::FeatureKey FeatureKeyFromBytes(const std::string& bytes);
// The digest of the picture in such bytes.
std::string_view PictureOfKey(std::string_view bytes);

// Digests of pictures, 32 bytes each.
using PictureSet = std::set<std::string, std::less<>>;
// The most that one DropFeatures may name.
inline constexpr int kMostDropped = 256;
// The field of such a request. INVALID_ARGUMENT: too many, or a digest that has not 32 bytes.
absl::StatusOr<PictureSet> ReadDropped(
    const google::protobuf::RepeatedPtrField<std::string>& image_sha256);

// For logs and error messages, e.g. "3f2a90c1.../5d01b7e2.../cpu-f32".
std::string FeatureKeyName(const v1::FeatureKey& key);

}  // namespace llava
