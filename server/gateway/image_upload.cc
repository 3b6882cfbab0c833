#include "server/gateway/image_upload.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/gateway/call_fault.h"
#include "server/gateway/picture_warmup.h"
#include "server/gateway/request_checks.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kWatchPeriod{1000};
// Of the first message, which is kept until the next one comes.
constexpr size_t kMaxHeaderBytes = 16u << 10;
// A process that drains waits so long for a chunk.
constexpr milliseconds kDrainPatience{5000};

absl::Status TooLarge(absl::string_view what, uint64_t bytes, uint64_t limit) {
  return absl::InvalidArgumentError(absl::StrCat("the picture ", what, " ", bytes,
                                                 " bytes, allowed are ", limit,
                                                 "; scale it down or compress it more"));
}

}  // namespace

ImageUpload* ImageUpload::Start(const TurnParts& parts, grpc::CallbackServerContext* context,
                                v1::UploadImageResponse* response) {
  std::shared_ptr<ImageUpload> upload(new ImageUpload(parts, context, response));
  upload->self_ = upload;
  if (auto status = upload->scope_.Admit(); !status.ok()) {
    upload->End(status);
  } else {
    {
      MutexLock lock(upload->mutex_);
      upload->last_ = steady_clock::now();
      upload->Watch();
    }
    upload->Read();
  }
  return upload.get();
}

void ImageUpload::Read() {
  const auto self = self_;  // the read may be the last thing that happens here
  StartRead(&read_);
  MutexLock lock(mutex_);
  ++reading_;
}

void ImageUpload::Watch() {
  const milliseconds period = std::min(kWatchPeriod, parts_.options.upload_patience);
  // The alarm keeps its callback after it has rung, so that the upload must leave it by then.
  alarm_.Set(std::chrono::system_clock::now() + period, [self = self_](bool) mutable {
    const auto upload = std::move(self);
    upload->OnWatch();
  });
}

void ImageUpload::OnWatch() {
  const bool drains = parts_.admission.draining();
  const milliseconds patience = drains ? std::min(kDrainPatience, parts_.options.upload_patience)
                                       : parts_.options.upload_patience;
  {
    MutexLock lock(mutex_);
    if (ended_) return;
    // Without a read under way it is at work itself.
    if (reading_ < 1 || steady_clock::now() - last_ < patience) return Watch();
    ended_ = true;
  }
  parts_.metrics.CountImage("refused");
  if (drains) {
    return Tell(
        OverloadedError("this gateway is shutting down; send the picture again, here or elsewhere",
                        milliseconds(1000)));
  }
  Tell(CallersFault(absl::DeadlineExceededError(absl::StrCat(
      "nothing more of the picture came for ", patience.count() / 1000.0, " s; send it again"))));
}

void ImageUpload::OnReadDone(bool ok) {
  {
    MutexLock lock(mutex_);
    --reading_;
    if (ended_) return;
    last_ = steady_clock::now();
  }
  if (!ok) {
    if (context_->IsCancelled()) return End(absl::CancelledError("the client went away"));
    return OnEnd();
  }
  if (session_id_.empty()) return OnHeader();
  if (auto status = OnChunk(); !status.ok()) return Refuse(status);
  Read();
}

void ImageUpload::OnHeader() {
  if (read_.part_case() != v1::UploadImageRequest::kHeader) {
    return Refuse(
        absl::InvalidArgumentError("the first message must be the header, chunks follow it"));
  }
  if (read_.ByteSizeLong() > kMaxHeaderBytes) {
    return Refuse(absl::InvalidArgumentError(absl::StrCat(
        "the header has ", read_.ByteSizeLong(), " bytes, allowed are ", kMaxHeaderBytes)));
  }
  const v1::UploadImageHeader& header = read_.header();
  if (auto status = CheckSessionId(header.session_id()); !status.ok()) return Refuse(status);
  if (header.size_bytes() > parts_.options.max_image_bytes) {
    return Refuse(TooLarge("is announced (size_bytes) with", header.size_bytes(),
                           parts_.options.max_image_bytes));
  }
  if (auto status = parts_.gate.ChargeRequest(scope_.caller()); !status.ok()) return Refuse(status);
  session_id_ = header.session_id();
  announced_bytes_ = header.size_bytes();
  const auto known = [self = self_](const absl::StatusOr<v1::Session>& session) {
    if (!session.ok()) return self->End(session.status());
    self->Read();
  };
  parts_.owners.Check(scope_.caller(), session_id_,
                      [self = self_, known](const absl::Status& owned) {
                        if (!owned.ok()) return self->End(owned);
                        self->parts_.store.GetSession(self->session_id_, known);
                      });
}

absl::Status ImageUpload::OnChunk() {
  if (read_.part_case() != v1::UploadImageRequest::kChunk) {
    return absl::InvalidArgumentError("after the header come chunks only");
  }
  const std::string chunk = std::move(*read_.mutable_chunk());
  read_.Clear();  // a message would keep its memory, and that of fields which nobody knows
  const uint64_t total = bytes_.size() + chunk.size();
  if (total > parts_.options.max_image_bytes) {
    return TooLarge("has more than", parts_.options.max_image_bytes,
                    parts_.options.max_image_bytes);
  }
  if (announced_bytes_ != 0 && total > announced_bytes_) {
    return absl::InvalidArgumentError(
        absl::StrCat("more bytes came than header.size_bytes = ", announced_bytes_, " announced"));
  }
  if (auto status = memory_.Hold(total, scope_.caller().name()); !status.ok()) return status;
  bytes_ += chunk;
  return absl::OkStatus();
}

void ImageUpload::OnEnd() {
  if (session_id_.empty()) {
    return Refuse(absl::InvalidArgumentError("nothing came; the first message is the header"));
  }
  if (announced_bytes_ != 0 && bytes_.size() != announced_bytes_) {
    return Refuse(absl::InvalidArgumentError(absl::StrCat("header.size_bytes announced ",
                                                          announced_bytes_, " bytes, ",
                                                          bytes_.size(), " came; send it again")));
  }
  auto image = ReadImageFile(std::move(bytes_), parts_.options);
  if (!image.ok()) return Refuse(image.status());
  *response_->mutable_image() = image->info;
  const double bytes = static_cast<double>(image->info.size_bytes());
  parts_.store.AddImage(session_id_, *image,
                        [self = self_, bytes, image = *image](const absl::Status& status) {
                          if (status.ok()) {
                            self->parts_.warmup.Begin(self->session_id_, image);
                            self->parts_.metrics.CountImage("accepted");
                            self->parts_.metrics.image_bytes_total.Increment(bytes);
                          }
                          self->End(status);
                        });
}

void ImageUpload::Refuse(const absl::Status& status) {
  parts_.metrics.CountImage("refused");
  End(status);
}

void ImageUpload::End(const absl::Status& status) {
  {
    MutexLock lock(mutex_);
    ended_ = true;  // OnWatch ends it only while a read is under way, which here none is
    alarm_.Cancel();
  }
  Tell(status);
}

void ImageUpload::Tell(const absl::Status& status) {
  scope_.End(status);
  answer_->BeginSend(0);
  Finish(ToGrpc(status));
}

}  // namespace llava
