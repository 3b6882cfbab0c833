#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "llava/v1/llm.pb.h"
#include "server/llm/llm_service.h"
#include "server/llm/sequence.h"
#include "server/runtime/stream_writer.h"

namespace llava {

// The sink of one Generate call: turns what the engine tells into messages of the stream. The calls
// come one after the other.
class GenerateStream : public AnswerSink {
 public:
  // `on_end` is called once, with the status the client is about to get.
  GenerateStream(std::shared_ptr<StreamWriter<v1::GenerateResponse>> writer, std::string request_id,
                 std::string session_id, std::function<void(const absl::Status&)> on_end)
      : writer_(std::move(writer)),
        request_id_(std::move(request_id)),
        session_id_(std::move(session_id)),
        on_end_(std::move(on_end)) {}

  // Before the job is submitted. The version is held until the stream has ended; `request` must
  // live that long.
  void SetJob(std::shared_ptr<const LlmBackend> backend, const v1::GenerateRequest* request,
              int64_t text_tokens, int64_t image_tokens) {
    backend_ = std::move(backend);
    request_ = request;
    text_tokens_ = text_tokens;
    image_tokens_ = image_tokens;
  }

  bool Started(double queue_seconds, int64_t cached_tokens) override;
  bool Delta(const AnswerDelta& delta) override;
  void Finished(const AnswerSummary& summary) override;
  void Failed(const absl::Status& status) override;
  bool gone() const override { return writer_->gone(); }

 private:
  void End(const absl::Status& status);

  const std::shared_ptr<StreamWriter<v1::GenerateResponse>> writer_;
  const std::string request_id_, session_id_;
  const std::function<void(const absl::Status&)> on_end_;
  std::shared_ptr<const LlmBackend> backend_;
  const v1::GenerateRequest* request_ = nullptr;
  int64_t text_tokens_ = 0, image_tokens_ = 0;
};

}  // namespace llava
