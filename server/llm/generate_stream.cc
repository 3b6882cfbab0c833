#include "server/llm/generate_stream.h"

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

v1::FinishReason ReasonOf(AnswerEnd end) {
  switch (end) {
    case AnswerEnd::kStop:
      return v1::FINISH_REASON_STOP;
    case AnswerEnd::kLength:
      return v1::FINISH_REASON_LENGTH;
    case AnswerEnd::kContext:
      return v1::FINISH_REASON_CONTEXT;
    case AnswerEnd::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

bool GenerateStream::Started(double queue_seconds, int64_t cached_tokens) {
  v1::GenerateResponse response;
  v1::GenerateStarted& started = *response.mutable_started();
  *started.mutable_model() = backend_->info.model();
  started.set_text_tokens(static_cast<uint32_t>(text_tokens_));
  started.set_image_tokens(static_cast<uint32_t>(image_tokens_));
  started.set_cached_tokens(static_cast<uint32_t>(cached_tokens));
  started.set_queue_seconds(queue_seconds);
  started.set_tokenizer_digest(backend_->info.tokenizer_digest());
  return writer_->Write(std::move(response));
}

bool GenerateStream::Delta(const AnswerDelta& delta) {
  v1::GenerateResponse response;
  v1::GenerateDelta& out = *response.mutable_delta();
  out.set_text(delta.text);
  out.set_text_offset(delta.text_offset);
  out.mutable_token_ids()->Assign(delta.token_ids.begin(), delta.token_ids.end());
  const Tokenizer& tokenizer = *backend_->engine.info().tokenizer;
  for (const TokenLogprobs& logprobs : delta.logprobs) {
    v1::TokenLogprobs& chosen = *out.add_logprobs();
    chosen.set_token_id(logprobs.chosen.id);
    chosen.set_token(tokenizer.TokenBytes(logprobs.chosen.id));
    chosen.set_logprob(logprobs.chosen.logprob);
    for (const TokenLogprob& top : logprobs.top) {
      v1::TopLogprob& alternative = *chosen.add_top();
      alternative.set_token_id(top.id);
      alternative.set_token(tokenizer.TokenBytes(top.id));
      alternative.set_logprob(top.logprob);
    }
  }
  return writer_->Write(std::move(response));
}

void GenerateStream::Finished(const AnswerSummary& summary) {
  v1::GenerateResponse response;
  v1::GenerateFinished& finished = *response.mutable_finished();
  finished.set_reason(ReasonOf(summary.end));
  v1::Usage& usage = *finished.mutable_usage();
  const int64_t used =
      summary.text_tokens + summary.image_tokens + int64_t{summary.generated_tokens};
  usage.set_text_tokens(static_cast<uint32_t>(summary.text_tokens));
  usage.set_image_tokens(static_cast<uint32_t>(summary.image_tokens));
  usage.set_cached_tokens(static_cast<uint32_t>(summary.cached_tokens));
  usage.set_generated_tokens(summary.generated_tokens);
  usage.set_context_used_tokens(static_cast<uint32_t>(used));
  usage.set_context_free_tokens(
      static_cast<uint32_t>(std::max<int64_t>(0, summary.context_tokens - used)));
  v1::Timings& timings = *finished.mutable_timings();
  timings.set_queue_seconds(summary.queue_seconds);
  timings.set_prefill_seconds(summary.prefill_seconds);
  timings.set_decode_seconds(summary.decode_seconds);
  timings.set_time_to_first_token_seconds(summary.first_token_seconds);
  timings.set_total_seconds(summary.total_seconds);
  v1::TokenIds& tokens = *finished.mutable_tokens();
  tokens.set_tokenizer_digest(backend_->info.tokenizer_digest());
  tokens.mutable_ids()->Assign(summary.delivered_ids.begin(), summary.delivered_ids.end());
  backend_->recent->Note(*request_, tokens);
  writer_->Write(std::move(response));
  LogInfo("answered", {{"request_id", request_id_},
                       {"session_id", session_id_},
                       {"reason", v1::FinishReason_Name(ReasonOf(summary.end))},
                       {"prompt_tokens", absl::StrCat(summary.text_tokens + summary.image_tokens)},
                       {"cached_tokens", absl::StrCat(summary.cached_tokens)},
                       {"generated_tokens", absl::StrCat(summary.generated_tokens)},
                       {"first_token_s", absl::StrFormat("%.4f", summary.first_token_seconds)},
                       {"total_s", absl::StrFormat("%.4f", summary.total_seconds)}});
  End(summary.end == AnswerEnd::kDeadline
          ? absl::DeadlineExceededError(
                absl::StrCat("the deadline passed after ", summary.generated_tokens, " tokens"))
          : absl::OkStatus());
}

void GenerateStream::Failed(const absl::Status& status) {
  LogInfo("refused or ended", {{"request_id", request_id_},
                               {"session_id", session_id_},
                               {"code", absl::StatusCodeToString(status.code())},
                               {"error", std::string(status.message())}});
  End(status);
}

void GenerateStream::End(const absl::Status& status) {
  on_end_(status);
  writer_->Close(ToGrpc(status));
}

}  // namespace llava
