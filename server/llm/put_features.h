#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "llava/v1/llm.grpc.pb.h"
#include "server/llm/feature_store.h"
#include "server/llm/routed_versions.h"

namespace llava {

// Receives one PutFeatures stream into `store`, which all versions share, or refuses it with
// `admitted` if that is an error. UNAVAILABLE: no version is routed. INVALID_ARGUMENT: another
// VisionSpec or shape than any of them reads (both are told), no size of the picture for a model of
// the anyres mode, chunks that do not fit the header.
// DATA_LOSS: damaged on the way. `on_end` is called once.
grpc::ServerReadReactor<v1::PutFeaturesRequest>* ReceiveFeatures(
    const absl::Status& admitted, const RoutedVersions& versions, FeatureStore& store,
    std::string request_id, v1::PutFeaturesResponse* response,
    std::function<void(const absl::Status&)> on_end);

}  // namespace llava
