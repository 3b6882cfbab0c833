#include "server/vision/vision_service.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/config/picture_shape.h"
#include "server/runtime/logging.h"
#include "server/runtime/request_id.h"
#include "server/runtime/status.h"
#include "server/runtime/stream_writer.h"
#include "server/vision/encode_job.h"
#include "server/wire/deadline.h"
#include "server/wire/feature_key.h"
#include "server/wire/tensor_stream.h"

namespace llava {
namespace {

constexpr std::chrono::milliseconds kRetryAfter{500};

std::string ShortHex(const std::string& digest) {
  return absl::BytesToHexString(digest.substr(0, 8));
}

}  // namespace

// One RPC: answers its client and is counted, once.
class VisionService::Call : public EncodeCall {
 public:
  Call(VisionService& service, std::shared_ptr<StreamWriter<v1::EncodeResponse>> writer,
       Clock::time_point deadline, std::string request_id, uint64_t request_bytes)
      : service_(service),
        writer_(std::move(writer)),
        deadline_(deadline),
        request_id_(std::move(request_id)),
        request_bytes_(request_bytes) {}

  void Done(std::shared_ptr<const Features> features, bool cached,
            const EncodeTimes& times) override {
    v1::EncodeResponse first;
    v1::EncodeHeader& header = *first.mutable_header();
    *header.mutable_key() = FeatureKeyFromBytes(features->key);
    v1::TensorHeader& tensor = *header.mutable_tensor();
    tensor.set_dtype(v1::DATA_TYPE_BFLOAT16);
    tensor.add_shape(features->rows);
    tensor.add_shape(features->width);
    tensor.set_size_bytes(features->bytes.size());
    tensor.set_crc32c(features->crc32c);
    header.set_image_width(features->image_width);
    header.set_image_height(features->image_height);
    if (!grid_.empty()) {
      const Resolution canvas = ChooseResolution(
          {static_cast<int>(features->image_width), static_cast<int>(features->image_height)},
          grid_);
      header.mutable_canvas()->set_width(static_cast<uint32_t>(canvas.width));
      header.mutable_canvas()->set_height(static_cast<uint32_t>(canvas.height));
    }
    header.set_cached(cached);
    header.set_queue_seconds(times.queue_seconds);
    header.set_compute_seconds(times.compute_seconds);
    held.ShrinkTo(request_bytes_ + features->bytes.size());
    writer_->Write(std::move(first));
    // Chunk by chunk: a client that reads slowly holds features that others have too, and one copy
    // of a chunk.
    writer_->Stream([features, left = SplitChunks(features->bytes),
                     i = size_t{0}]() mutable -> std::optional<v1::EncodeResponse> {
      if (i == left.size()) return std::nullopt;
      v1::EncodeResponse chunk;
      chunk.set_chunk(left[i].data(), left[i].size());
      ++i;
      return chunk;
    });
    LogDebug("encoded", {{"request_id", request_id_},
                         {"key", FeatureKeyName(FeatureKeyFromBytes(features->key))},
                         {"cached", cached ? "true" : "false"}});
    End(absl::OkStatus());
  }

  void Failed(const absl::Status& status) override {
    LogInfo("refused", {{"request_id", request_id_},
                        {"code", absl::StatusCodeToString(status.code())},
                        {"error", std::string(status.message())}});
    End(status);
  }

  bool gone() const override { return writer_->gone(); }
  Clock::time_point deadline() const override { return deadline_; }

  // Canvases of the request, if any.
  void SetGrid(std::vector<Resolution> grid) { grid_ = std::move(grid); }
  // Kept until the features are there.
  void SetTower(std::shared_ptr<VisionServable> tower) { tower_ = std::move(tower); }

 private:
  void End(const absl::Status& status) {
    service_.metrics_
        .Counter("llava_vision_requests_total", "Encode calls by status code",
                 {{"code", absl::StatusCodeToString(status.code())}})
        .Increment();
    tower_.reset();  // who reads slowly keeps no version from going
    writer_->Close(ToGrpc(status));
  }

  VisionService& service_;
  const std::shared_ptr<StreamWriter<v1::EncodeResponse>> writer_;
  const Clock::time_point deadline_;
  const std::string request_id_;
  const uint64_t request_bytes_;
  std::vector<Resolution> grid_;
  std::shared_ptr<VisionServable> tower_;
};

grpc::ServerWriteReactor<v1::EncodeResponse>* VisionService::Encode(
    grpc::CallbackServerContext* context, const v1::EncodeRequest* request) {
  auto writer = StreamWriter<v1::EncodeResponse>::Create();
  auto* reactor = writer.get();
  std::string id = RequestId(*context);
  if (!request->request_id().empty()) id = AcceptRequestId(request->request_id());
  auto call =
      std::make_shared<Call>(*this, writer, SteadyDeadline(*context), id, request->image().size());
  if (!admission_.Enter()) {
    call->Failed(OverloadedError("vision: draining, no new pictures", kRetryAfter));
    return reactor;
  }
  // It is under way, and holds its memory, until the client has got all: the process may end then.
  writer->SetOnDone([this, call] { admission_.Leave(); });
  auto tower = FindTower(request->spec());
  if (!tower.ok()) {
    call->Failed(tower.status());
    return reactor;
  }
  VisionEngine& engine = (*tower)->engine();
  absl::StatusOr<EncodeJob> job = MakeJob(*request, engine);
  if (!job.ok()) {
    call->Failed(job.status());
    return reactor;
  }
  call->SetTower(*tower);
  call->SetGrid(job->grid);
  job->request_id = id;
  job->call = call;
  if (auto status = engine.Post(*std::move(job)); !status.ok()) call->Failed(status);
  return reactor;
}

grpc::ServerUnaryReactor* VisionService::DropFeatures(
    grpc::CallbackServerContext* context, const v1::VisionServiceDropFeaturesRequest* request,
    v1::VisionServiceDropFeaturesResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!admission_.Enter()) {
    reactor->Finish(ToGrpc(OverloadedError("vision: draining, no new requests", kRetryAfter)));
    return reactor;
  }
  const auto end = [this, reactor](const absl::Status& status) {
    admission_.Leave();
    reactor->Finish(ToGrpc(status));  // last: after it the process may end
  };
  const auto pictures = ReadDropped(request->image_sha256());
  if (!pictures.ok()) {
    end(pictures.status());
    return reactor;
  }
  cache_.Drop(*pictures, [this, response, end](const absl::StatusOr<size_t>& tensors) {
    if (tensors.ok()) {
      metrics_
          .Counter("llava_vision_features_dropped_total",
                   "Tensors forgotten on request, those in memory and those on disk")
          .Increment(static_cast<double>(*tensors));
      response->set_dropped(static_cast<uint32_t>(*tensors));
    }
    end(tensors.status());
  });
  return reactor;
}

absl::StatusOr<std::shared_ptr<VisionServable>> VisionService::FindTower(
    const v1::VisionSpec& spec) const {
  if (auto status = CheckVisionSpec(spec); !status.ok()) return status;
  if (auto tower = towers_.FindDigest(spec.tower_digest())) return tower;
  const auto towers = towers_.List();
  if (towers.empty()) return OverloadedError("vision: no tower is loaded yet", kRetryAfter);
  std::string here;
  for (const auto& tower : towers) {
    const v1::ModelVersion& model = tower->info().model();
    absl::StrAppend(&here, here.empty() ? "" : "; ", model.name(), " ", model.version(), ", ",
                    ShortHex(model.digest()), "...");
  }
  return absl::NotFoundError(absl::StrCat("no tower with digest ", ShortHex(spec.tower_digest()),
                                          "... here; this process has ", here));
}

absl::StatusOr<EncodeJob> VisionService::MakeJob(const v1::EncodeRequest& request,
                                                 const VisionEngine& engine) {
  if (request.image().empty()) return absl::InvalidArgumentError("EncodeRequest.image is empty");
  const uint64_t most = engine.options().limits.max_bytes;
  if (request.image().size() > most) {
    return absl::InvalidArgumentError(absl::StrCat("the picture has ", request.image().size(),
                                                   " bytes, at most ", most,
                                                   " are taken (--max-image-bytes)"));
  }
  absl::StatusOr<EncodeJob> job = JobOf(request.spec(), engine.info());
  if (!job.ok()) return job;
  job->image = request.image();
  job->place = {
      .tenant = request.tenant(), .weight = request.weight(), .priority = request.priority()};
  return job;
}

}  // namespace llava
