#include "server/gateway/feature_transfer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/runtime/status.h"
#include "server/wire/feature_key.h"

namespace llava {

std::shared_ptr<FeatureTransfer> FeatureTransfer::Start(
    Backend& vision, Backend& llm, v1::EncodeRequest request, v1::FeatureKey expected,
    std::chrono::system_clock::time_point deadline, Done done) {
  std::shared_ptr<FeatureTransfer> transfer(
      new FeatureTransfer(vision, llm, std::move(request), std::move(expected), std::move(done)));
  transfer->self_ = transfer;
  for (auto* context : {&transfer->reader_context_, &transfer->writer_context_}) {
    (*context)->set_deadline(deadline);
    (*context)->AddMetadata("x-request-id", transfer->request_.request_id());
  }
  Reader& reader = transfer->reader_;
  vision.encoder().async()->Encode(transfer->reader_context_.get(), &transfer->request_, &reader);
  reader.AddHold();  // goes when a read fails, or when there is nobody to read for
  reader.StartRead(&transfer->read_);
  reader.StartCall();
  return transfer;
}

FeatureTransfer::FeatureTransfer(Backend& vision, Backend& llm, v1::EncodeRequest request,
                                 v1::FeatureKey expected, Done done)
    : vision_(vision),
      llm_(llm),
      request_(std::move(request)),
      expected_(std::move(expected)),
      done_(std::move(done)),
      reader_context_(vision),
      writer_context_(llm) {
  reader_.transfer = this;
  writer_.transfer = this;
}

void FeatureTransfer::Cancel() {
  {
    MutexLock lock(mutex_);
    cancelled_ = true;
  }
  reader_context_->TryCancel();
  writer_context_->TryCancel();
}

void FeatureTransfer::OnRead(bool ok) {
  if (!ok) return reader_.RemoveHold();  // the end, good or bad: OnReaderDone tells
  if (writer_open_) {
    if (read_.part_case() == v1::EncodeResponse::kChunk) {
      written_.mutable_chunk()->swap(*read_.mutable_chunk());
      return writer_.StartWrite(&written_);
    }
    protocol_error_ = absl::InternalError("a second header in the features of one picture");
  } else {
    protocol_error_ = CheckHeader();
    if (protocol_error_.ok()) return OpenWriter();
  }
  reader_context_->TryCancel();
  reader_.RemoveHold();
}

absl::Status FeatureTransfer::CheckHeader() const {
  if (read_.part_case() != v1::EncodeResponse::kHeader) {
    return absl::InternalError("features began without a header");
  }
  const v1::FeatureKey& key = read_.header().key();
  if (auto status = CheckFeatureKey(key); !status.ok()) {
    return absl::InternalError(status.message());
  }
  if (key.image_sha256() != expected_.image_sha256() ||
      key.spec_digest() != expected_.spec_digest()) {
    return absl::InternalError(
        absl::StrCat("features of another picture or spec came back: ", FeatureKeyName(key)));
  }
  return absl::OkStatus();
}

void FeatureTransfer::OpenWriter() {
  result_.key = read_.header().key();
  result_.cached = read_.header().cached();
  *written_.mutable_header()->mutable_key() = read_.header().key();
  *written_.mutable_header()->mutable_tensor() = read_.header().tensor();
  written_.mutable_header()->set_image_width(read_.header().image_width());
  written_.mutable_header()->set_image_height(read_.header().image_height());
  llm_.receiver().async()->PutFeatures(writer_context_.get(), &response_, &writer_);
  writer_open_ = true;
  writer_.AddHold();  // goes after the last write
  writer_.StartWrite(&written_);
  writer_.StartCall();
}

void FeatureTransfer::OnWritten(bool ok) {
  if (ok) return reader_.StartRead(&read_);
  // The LLM service wants no more: it has them already, or it failed. OnWriterDone tells.
  writer_broke_ = true;
  reader_context_->TryCancel();
  reader_.RemoveHold();
}

void FeatureTransfer::OnReaderDone(const grpc::Status& status) {
  reader_status_ = FromGrpc(status);
  vision_.Report(protocol_error_.ok() ? reader_status_ : protocol_error_);
  if (!writer_open_) return End();
  if (!writer_broke_) {
    if (reader_status_.ok() && protocol_error_.ok()) {
      writer_.StartWritesDone();
    } else {
      writer_context_->TryCancel();
    }
  }
  writer_.RemoveHold();
}

// Comes after OnReaderDone, which gives the hold back.
void FeatureTransfer::OnWriterDone(const grpc::Status& status) {
  writer_status_ = FromGrpc(status);
  // A good end is not reported: the answer that follows tells more, and must not find its own
  // failures forgotten.
  if (!writer_status_.ok()) llm_.Report(writer_status_);
  End();
}

void FeatureTransfer::End() {
  const auto keep = std::move(self_);
  const Done done = std::move(done_);
  bool cancelled = false;
  {
    MutexLock lock(mutex_);
    cancelled = cancelled_;
  }
  if (writer_open_ && writer_status_.ok() && (writer_broke_ || reader_status_.ok())) {
    return done(result_, nullptr);
  }
  if (cancelled) return done(absl::CancelledError("cancelled"), nullptr);
  const auto fail = [&done](Backend& service, const absl::Status& status) {
    done(service.Explain(status), &service);
  };
  if (!protocol_error_.ok()) return fail(vision_, protocol_error_);
  if (writer_broke_) return fail(llm_, writer_status_);
  if (!reader_status_.ok()) return fail(vision_, reader_status_);
  if (!writer_open_) {
    return fail(vision_, absl::InternalError("no features came back for a picture"));
  }
  fail(llm_, writer_status_);
}

}  // namespace llava
