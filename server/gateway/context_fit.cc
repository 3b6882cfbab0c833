#include "server/gateway/context_fit.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace llava {
namespace {

// Fewer bytes than a token of common text has: a turn is thought to be long, so that rather one
// more round is needed than a turn dropped that could stay.
constexpr int64_t kBytesPerToken = 2;

}  // namespace

std::shared_ptr<ContextFit> ContextFit::Create(const TurnParts& parts, Conversation& conversation,
                                               NewTurn& turn, const Route& route,
                                               FeatureDelivery::Terms terms, Done done) {
  return std::shared_ptr<ContextFit>(
      new ContextFit(parts, conversation, turn, route, std::move(terms), std::move(done)));
}

ContextFit::ContextFit(const TurnParts& parts, Conversation& conversation, NewTurn& turn,
                       const Route& route, FeatureDelivery::Terms terms, Done done)
    : parts_(parts),
      conversation_(conversation),
      turn_(turn),
      route_(route),
      terms_(std::move(terms)),
      done_(std::move(done)) {}

void ContextFit::Start() {
  auto llm = parts_.router.PickLlm(route_, conversation_.session.id());
  if (!llm.ok()) return done_(llm.status());
  llm_ = *std::move(llm);
  Count();
}

void ContextFit::Count() {
  prompt_ = PromptOf(conversation_, turn_);
  count_.Start(PromptCount::Create(
      parts_, prompt_, route_, llm_, terms_,
      [self = shared_from_this()](const auto& counts) { self->OnCount(counts); }));
}

void ContextFit::Cancel() { count_.Cancel(); }

void ContextFit::OnCount(const absl::StatusOr<v1::CountTokensResponse>& counts) {
  if (!counts.ok()) return Finish(counts.status());
  const int64_t context = route_.model.context_tokens();
  const int64_t answer = turn_.sampling.has_max_new_tokens()
                             ? std::min<int64_t>(turn_.sampling.max_new_tokens(), context / 4)
                             : context / 4;
  const int64_t prompt = int64_t{counts->text_tokens()} + counts->image_tokens();
  const int64_t excess = prompt + answer - context;
  if (excess <= 0 || !Drop(excess)) return Finish(absl::OkStatus());
  Count();
}

void ContextFit::Finish(const absl::Status& status) {
  count_.Clear();
  done_(status);
}

bool ContextFit::Drop(int64_t tokens) {
  bool dropped = false;
  for (StoredTurn& stored : conversation_.turns) {
    v1::Turn& turn = stored.turn;
    if (tokens <= 0) break;
    if (turn.id() == turn_.id || turn.dropped_from_context() || turn.answer_text().empty()) {
      continue;
    }
    turn.set_dropped_from_context(true);
    turn_.dropped_turns.push_back(turn.id());
    dropped = true;
    const auto bytes = static_cast<int64_t>(turn.user_text().size() + turn.answer_text().size());
    tokens -= std::max<int64_t>(1, bytes / kBytesPerToken) +
              int64_t{turn.images_size()} * route_.model.image_tokens();
  }
  return dropped;
}

}  // namespace llava
