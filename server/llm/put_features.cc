#include "server/llm/put_features.h"

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/config/picture_shape.h"
#include "server/llm/busy.h"
#include "server/llm/llm_service.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"
#include "server/wire/feature_key.h"
#include "server/wire/tensor_stream.h"

namespace llava {
namespace {

FeatureType TypeOf(v1::DataType dtype) {
  switch (dtype) {
    case v1::DATA_TYPE_FLOAT32:
      return FeatureType::kFloat32;
    case v1::DATA_TYPE_FLOAT16:
      return FeatureType::kFloat16;
    default:
      return FeatureType::kBFloat16;
  }
}

absl::StatusOr<Resolution> SizeOf(const v1::FeatureHeader& header, bool needed) {
  const uint32_t width = header.image_width(), height = header.image_height();
  if (needed && (width == 0 || height == 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("FeatureHeader has a picture of ", width, " x ", height,
                     " pixels: how many image tokens it takes depends on its size (anyres); send "
                     "image_width and image_height as EncodeHeader has them"));
  }
  if (width > INT32_MAX || height > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("FeatureHeader has a picture of ", width, " x ",
                                                   height, " pixels, which cannot be"));
  }
  return Resolution{static_cast<int>(width), static_cast<int>(height)};
}

absl::Status CheckFits(const v1::FeatureHeader& header, const v1::ModelInfo& model,
                       const PictureShape& pictures) {
  if (header.key().spec_digest() != ToBytes(SpecDigest(model.vision_spec()))) {
    return absl::InvalidArgumentError(
        absl::StrCat("the features ", FeatureKeyName(header.key()),
                     " are of another VisionSpec than this model's (ListModels)"));
  }
  const absl::StatusOr<Resolution> size = SizeOf(header, /*needed=*/!pictures.is_fixed());
  if (!size.ok()) return size.status();
  const auto& shape = header.tensor().shape();
  const int64_t rows = pictures.NumRows(*size);
  if (shape.size() != 2 || shape[0] != rows || shape[1] != model.feature_width()) {
    const std::string of =
        pictures.is_fixed() ? ""
                            : absl::StrCat(" of a picture of ", size->width, " x ", size->height);
    return absl::InvalidArgumentError(absl::StrCat("the features are ", ShapeName(header.tensor()),
                                                   ", the model reads [", rows, ", ",
                                                   model.feature_width(), "]", of));
  }
  return absl::OkStatus();
}

// Whether there is a version that reads such features.
absl::Status CheckWanted(const v1::FeatureHeader& header, const RoutedVersions& versions) {
  if (auto status = CheckFeatureKey(header.key()); !status.ok()) return status;
  absl::Status refused = LlmBusyError("the model is still loading");
  for (const auto& version : versions.All()) {
    refused = CheckFits(header, version->info, version->engine.info().pictures);
    if (refused.ok()) break;
  }
  return refused;
}

// Owned by gRPC until OnDone. Reads come one after the other.
class Reader : public grpc::ServerReadReactor<v1::PutFeaturesRequest> {
 public:
  Reader(const absl::Status& admitted, const RoutedVersions& versions, FeatureStore& store,
         std::string request_id, v1::PutFeaturesResponse* response,
         std::function<void(const absl::Status&)> on_end)
      : versions_(versions),
        store_(store),
        request_id_(std::move(request_id)),
        response_(response),
        on_end_(std::move(on_end)) {
    if (admitted.ok()) {
      StartRead(&part_);
    } else {
      End(admitted);
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End(Store());
    if (auto status = Take(); !status.ok()) return End(status);
    if (response_->already_present()) return End(absl::OkStatus());
    StartRead(&part_);
  }

  void OnDone() override { delete this; }

 private:
  absl::Status Take() {
    if (part_.has_header()) {
      if (tensor_) return absl::InvalidArgumentError("a second header in the stream");
      return Begin(part_.header());
    }
    if (!part_.has_chunk()) return absl::InvalidArgumentError("a message without header or chunk");
    if (!tensor_) return absl::InvalidArgumentError("the first message must be the header");
    return tensor_->Add(part_.chunk());
  }

  absl::Status Begin(const v1::FeatureHeader& header) {
    if (auto status = CheckWanted(header, versions_); !status.ok()) return status;
    key_ = FeatureKeyToBytes(header.key());
    picture_ = {static_cast<int>(header.image_width()), static_cast<int>(header.image_height())};
    if (store_.Renew(key_, FeatureStore::Clock::now())) {
      response_->set_already_present(true);
      return absl::OkStatus();
    }
    auto tensor = TensorAssembler::Create(header.tensor());
    if (!tensor.ok()) return tensor.status();
    tensor_.emplace(*std::move(tensor));
    return absl::OkStatus();
  }

  absl::Status Store() {
    if (!tensor_) return absl::InvalidArgumentError("the stream ended before its header");
    const v1::TensorHeader header = tensor_->header();
    auto bytes = std::move(*tensor_).Finish();
    if (!bytes.ok()) return bytes.status();
    return store_.Put(
        key_,
        {TypeOf(header.dtype()), header.shape(0), header.shape(1), *std::move(bytes), picture_},
        FeatureStore::Clock::now());
  }

  void End(const absl::Status& status) {
    if (!status.ok()) {
      LogInfo("features refused", {{"request_id", request_id_},
                                   {"code", absl::StatusCodeToString(status.code())},
                                   {"error", std::string(status.message())}});
    }
    on_end_(status);
    Finish(ToGrpc(status));
  }

  const RoutedVersions& versions_;
  FeatureStore& store_;
  const std::string request_id_;
  v1::PutFeaturesResponse* const response_;
  const std::function<void(const absl::Status&)> on_end_;
  v1::PutFeaturesRequest part_;
  std::string key_;
  Resolution picture_;
  std::optional<TensorAssembler> tensor_;
};

}  // namespace

grpc::ServerReadReactor<v1::PutFeaturesRequest>* ReceiveFeatures(
    const absl::Status& admitted, const RoutedVersions& versions, FeatureStore& store,
    std::string request_id, v1::PutFeaturesResponse* response,
    std::function<void(const absl::Status&)> on_end) {
  return new Reader(admitted, versions, store, std::move(request_id), response, std::move(on_end));
}

}  // namespace llava
