#include "server/gateway/token_count.h"

#include <algorithm>
#include <string>
#include <utility>

#include "server/gateway/call_fault.h"
#include "server/gateway/stoppable_calls.h"

namespace llava {

void TokenCount::Start(const TurnParts& parts, UnaryCall call,
                       const v1::ChatServiceCountTokensRequest& request,
                       std::vector<StoredImage> images,
                       std::chrono::system_clock::time_point deadline,
                       v1::ChatServiceCountTokensResponse* response) {
  std::shared_ptr<TokenCount> count(new TokenCount(parts, std::move(call), response));
  count->deadline_ =
      std::min(deadline, std::chrono::system_clock::now() + parts.options.request_timeout);
  if (!parts.counts.Add(count.get(), [count] { count->Cancel(); })) {
    count->Cancel();
    return count->Finish(absl::OkStatus());
  }
  parts.store.GetConversation(
      request.session_id(), {},
      [count, text = request.text(), images = std::move(images)](const auto& conversation) {
        count->OnConversation(conversation, text, images);
      });
}

void TokenCount::OnConversation(const absl::StatusOr<Conversation>& conversation,
                                const std::string& text, const std::vector<StoredImage>& images) {
  if (!conversation.ok()) return Finish(conversation.status());
  if (auto status = CheckPictures(images, conversation->images); !status.ok()) {
    return Finish(status);
  }
  NewTurn next;
  next.user_text = text;
  next.images = images;
  prompt_ = PromptOf(*conversation, next);
  auto choice = ModelChoiceOf(conversation->session);
  if (!choice.ok()) return Finish(choice.status());
  choice_ = *std::move(choice);
  FindVersion();
}

void TokenCount::FindVersion() {
  parts_.router.Resolve(choice_, !prompt_.DistinctImages().empty(),
                        [self = shared_from_this()](const auto& route) { self->OnVersion(route); });
}

void TokenCount::OnVersion(const absl::StatusOr<Route>& route) {
  if (!route.ok()) return Finish(route.status());
  auto llm = parts_.router.PickLlm(*route, call_.scope().request_id());
  if (!llm.ok()) return Finish(llm.status());
  count_.Start(PromptCount::Create(
      parts_, prompt_, *route, *std::move(llm),
      {call_.scope().caller(), call_.scope().request_id(), /*priority=*/0, deadline_},
      [self = shared_from_this()](const absl::StatusOr<v1::CountTokensResponse>& counts) {
        if (counts.ok()) {
          self->response_->set_text_tokens(counts->text_tokens());
          self->response_->set_image_tokens(counts->image_tokens());
          self->response_->set_context_tokens(counts->context_tokens());
        }
        // The version went away between choice and call.
        if (IsVersionGone(counts.status()) && !std::exchange(self->again_, true)) {
          return self->parts_.router.Refresh([self] { self->FindVersion(); });
        }
        self->Finish(counts.status());
      }));
}

void TokenCount::Cancel() { count_.Cancel(); }

void TokenCount::Finish(const absl::Status& status) {
  parts_.counts.Remove(this);
  count_.Clear();
  call_.Finish(count_.cancelled() ? ShuttingDown() : status);
}

}  // namespace llava
