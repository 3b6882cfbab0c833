// Sessions, turns and models. Streams of answers: chat_streams.cc.

#include "server/gateway/chat_service.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/gateway/feature_drops.h"
#include "server/gateway/image_upload.h"
#include "server/gateway/key_lanes.h"
#include "server/gateway/request_checks.h"
#include "server/gateway/token_count.h"
#include "server/runtime/request_id.h"
#include "server/runtime/status.h"
#include "server/wire/constraint.h"
#include "server/wire/sampling.h"

namespace llava {
namespace {

absl::Status LeftRunning() {
  return OverloadedError(
      "the gateway is being stopped and leaves this turn to the next process, which goes on with "
      "it; stop it there",
      std::chrono::seconds(1));
}

}  // namespace

void ChatServiceImpl::ForOwner(const UnaryCall& call, absl::Status checked,
                               const std::string& session_id, std::function<void()> work) {
  absl::Status status = call.Enter();
  if (status.ok()) status = std::move(checked);
  if (!status.ok()) return call.Finish(status);
  InLane(parts_.calls, call,
         [this, call, session_id, work = std::move(work)](KeyLanes::Place place) {
           call.scope().Hold(std::move(place));
           parts_.owners.Check(call.scope().caller(), session_id,
                               [call, work](const absl::Status& owned) {
                                 if (!owned.ok()) return call.Finish(owned);
                                 work();
                               });
         });
}

absl::Status ChatServiceImpl::ChargeConstraint(const Caller& caller,
                                               const v1::SamplingParams& params) const {
  if (!HasConstraint(params)) return absl::OkStatus();
  if (auto status = parts_.gate.ChargeRequest(caller); !status.ok()) return status;
  return CheckConstraint(params);
}

void ChatServiceImpl::ForPage(const UnaryCall& call, std::function<void()> work) {
  InLane(parts_.pages, call, [call, work = std::move(work)](KeyLanes::Place place) {
    call.reactor()->HoldPlace(std::move(place));
    work();
  });
}

void ChatServiceImpl::InLane(KeyLanes& lane, const UnaryCall& call, KeyLanes::Work work) {
  const absl::Status gone = absl::CancelledError("the client went away");
  const std::string& key = call.scope().caller().name();
  auto entered =
      lane.Enter(key, call.reactor(), [call, gone, work = std::move(work)](KeyLanes::Place place) {
        if (call.reactor()->gone()) return call.Finish(gone);
        work(std::move(place));
      });
  if (!entered.ok()) return call.Finish(entered);
  // The work may have run by now, and the call wait in its next lane.
  call.reactor()->SetOnGone([this, call, key, gone] {
    const void* who = call.reactor();
    if (parts_.calls.TakeBack(key, who) || parts_.pages.TakeBack(key, who)) call.Finish(gone);
  });
}

grpc::ServerUnaryReactor* ChatServiceImpl::CreateSession(grpc::CallbackServerContext* context,
                                                         const v1::CreateSessionRequest* request,
                                                         v1::CreateSessionResponse* response) {
  const UnaryCall call("CreateSession", *context, parts_, *request, *response);
  auto status = call.Admit();
  if (status.ok()) status = CheckCreateSession(*request);
  if (status.ok()) status = ChargeConstraint(call.scope().caller(), request->sampling());
  if (!status.ok()) return call.Finished(status);
  v1::Session session;
  session.set_id(RandomId());
  session.set_owner(call.scope().caller().name());
  session.set_model(request->model());
  if (request->has_system_prompt()) session.set_system_prompt(request->system_prompt());
  if (request->has_sampling()) *session.mutable_sampling() = request->sampling();
  session.set_title(request->title());
  *session.mutable_metadata() = request->metadata();
  session.set_context_overflow(request->context_overflow());
  if (request->has_idle_expiry()) *session.mutable_idle_expiry() = request->idle_expiry();

  auto store = [this, call, response](v1::Session ready) {
    parts_.store.CreateSession(std::move(ready), [call, response](auto stored) {
      if (stored.ok()) *response->mutable_session() = *std::move(stored);
      call.Finish(stored.status());
    });
  };
  if (session.model().empty()) {
    session.set_model(parts_.router.DefaultModel());  // empty: chosen by the first turn
    store(std::move(session));
  } else {
    const auto model = ModelChoiceOf(session);  // checked above
    parts_.router.Resolve(*model, /*pictures=*/false,
                          [call, store, session = std::move(session)](const auto& route) {
                            if (route.ok()) return store(session);
                            call.Finish(route.status());
                          });
  }
  return call.reactor();
}

grpc::ServerUnaryReactor* ChatServiceImpl::GetSession(grpc::CallbackServerContext* context,
                                                      const v1::GetSessionRequest* request,
                                                      v1::GetSessionResponse* response) {
  const UnaryCall call("GetSession", *context, parts_, *request, *response);
  ForOwner(call, CheckSessionId(request->session_id()), request->session_id(),
           [this, call, request, response] {
             parts_.store.GetSession(request->session_id(), [call, response](auto session) {
               if (session.ok()) *response->mutable_session() = *std::move(session);
               call.Finish(session.status());
             });
           });
  return call.reactor();
}

grpc::ServerUnaryReactor* ChatServiceImpl::ListSessions(grpc::CallbackServerContext* context,
                                                        const v1::ListSessionsRequest* request,
                                                        v1::ListSessionsResponse* response) {
  const UnaryCall call("ListSessions", *context, parts_, *request, *response);
  const auto page_size = PageSize(request->page_size());
  auto status = call.Enter();
  if (status.ok()) status = page_size.status();
  if (!status.ok()) return call.Finished(status);
  const Caller& caller = call.scope().caller();
  const auto owner = caller.is_admin() ? std::nullopt : std::make_optional(caller.name());
  const auto answer = [call, response](auto page) {
    if (page.ok()) {
      for (v1::Session& session : page->sessions) *response->add_sessions() = std::move(session);
      response->set_next_page_token(page->next_page_token);
    }
    call.Finish(page.status());
  };
  ForPage(call, [this, owner, request, page_size, answer] {
    parts_.store.ListSessions(owner, *page_size, request->page_token(), answer);
  });
  return call.reactor();
}

grpc::ServerUnaryReactor* ChatServiceImpl::UpdateSession(grpc::CallbackServerContext* context,
                                                         const v1::UpdateSessionRequest* request,
                                                         v1::UpdateSessionResponse* response) {
  const UnaryCall call("UpdateSession", *context, parts_, *request, *response);
  auto status = call.Enter();
  if (status.ok()) status = CheckUpdateSession(*request);
  const std::string id = request->session().id();
  if (status.ok() && ChangesSampling(*request)) {
    status = ChargeConstraint(call.scope().caller(), request->session().sampling());
  }
  // A turn reads the system text before it is recorded, and again when a later process takes it up:
  // between the two it must stay.
  const auto& paths = request->update_mask().paths();
  const bool alone = std::find(paths.begin(), paths.end(), "system_prompt") != paths.end();
  ForOwner(call, status, id, [this, call, request, response, id, alone] {
    if (alone) {
      if (auto status = parts_.running.Add(id, "", nullptr); !status.ok()) {
        return call.Finish(status);
      }
    }
    parts_.store.UpdateSession(request->session(), request->update_mask(),
                               [this, call, response, id, alone](auto session) {
                                 if (alone) parts_.running.Remove(id);
                                 if (session.ok()) {
                                   *response->mutable_session() = *std::move(session);
                                 }
                                 call.Finish(session.status());
                               });
  });
  return call.reactor();
}

grpc::ServerUnaryReactor* ChatServiceImpl::DeleteSession(grpc::CallbackServerContext* context,
                                                         const v1::DeleteSessionRequest* request,
                                                         v1::DeleteSessionResponse* response) {
  const UnaryCall call("DeleteSession", *context, parts_, *request, *response);
  const std::string id = request->session_id();
  const auto remove = [this, call, id] {
    // Keeps new turns away until the session is gone.
    if (auto status = parts_.running.Add(id, "", nullptr); !status.ok()) {
      return call.Finish(status);
    }
    parts_.store.DeleteSession(id, [this, call, id](const absl::StatusOr<Removed>& removed) {
      parts_.running.Remove(id);
      if (removed.ok()) {
        parts_.journal.BeginFile();
        parts_.drops.Drop(removed->pictures, removed->sessions);
      }
      call.Finish(removed.status());
    });
  };
  ForOwner(call, CheckSessionId(id), id, [this, call, id, remove] {
    call.scope().Hold(nullptr);  // the turn's end may take a while
    const bool running =
        parts_.running.Break(id, "", TurnBreak::kCancelTurn, [remove](bool /*over*/) { remove(); });
    if (!running) remove();
  });
  return call.reactor();
}

grpc::ServerUnaryReactor* ChatServiceImpl::ListTurns(grpc::CallbackServerContext* context,
                                                     const v1::ListTurnsRequest* request,
                                                     v1::ListTurnsResponse* response) {
  const UnaryCall call("ListTurns", *context, parts_, *request, *response);
  auto status = CheckSessionId(request->session_id());
  const auto page_size = PageSize(request->page_size());
  if (status.ok()) status = page_size.status();
  const auto answer = [call, response](auto page) {
    if (page.ok()) {
      for (v1::Turn& turn : page->turns) *response->add_turns() = std::move(turn);
      response->set_next_page_token(page->next_page_token);
    }
    call.Finish(page.status());
  };
  ForOwner(call, status, request->session_id(), [this, call, request, page_size, answer] {
    ForPage(call, [this, request, page_size, answer] {
      parts_.store.ListTurns(request->session_id(), *page_size, request->page_token(), answer);
    });
  });
  return call.reactor();
}

grpc::ServerReadReactor<v1::UploadImageRequest>* ChatServiceImpl::UploadImage(
    grpc::CallbackServerContext* context, v1::UploadImageResponse* response) {
  return ImageUpload::Start(parts_, context, response);
}

grpc::ServerUnaryReactor* ChatServiceImpl::CancelTurn(grpc::CallbackServerContext* context,
                                                      const v1::CancelTurnRequest* request,
                                                      v1::CancelTurnResponse* response) {
  const UnaryCall call("CancelTurn", *context, parts_, *request, *response);
  absl::Status status = CheckSessionId(request->session_id());
  // Empty: whichever is running.
  if (status.ok() && !request->turn_id().empty()) status = CheckTurnId(request->turn_id());
  ForOwner(call, status, request->session_id(), [this, call, request, response] {
    call.scope().Hold(nullptr);  // likewise
    const bool running =
        parts_.running.Break(request->session_id(), request->turn_id(), TurnBreak::kCancelTurn,
                             [call, response](bool over) {
                               response->set_was_running(over);
                               call.Finish(over ? absl::OkStatus() : LeftRunning());
                             });
    if (running) return;
    const auto ended = [call](const auto& known) { call.Finish(known.status()); };
    if (request->turn_id().empty()) {
      parts_.store.GetSession(request->session_id(), ended);
    } else {
      parts_.store.GetTurn(request->session_id(), request->turn_id(), ended);
    }
  });
  return call.reactor();
}

grpc::ServerUnaryReactor* ChatServiceImpl::ListModels(
    grpc::CallbackServerContext* context, const v1::ChatServiceListModelsRequest* request,
    v1::ChatServiceListModelsResponse* response) {
  const UnaryCall call("ListModels", *context, parts_, *request, *response);
  if (auto status = call.Enter(); !status.ok()) return call.Finished(status);
  const auto answer = [this, call, response] {
    auto models = parts_.router.LanguageModels();
    if (models.ok()) {
      for (v1::ModelInfo& model : *models) *response->add_models() = std::move(model);
      response->set_default_model(parts_.router.DefaultModel());
    }
    call.Finish(models.status());
  };
  if (parts_.router.LanguageModels().ok()) {
    answer();
  } else {
    parts_.router.Refresh(answer);
  }
  return call.reactor();
}

grpc::ServerUnaryReactor* ChatServiceImpl::CountTokens(
    grpc::CallbackServerContext* context, const v1::ChatServiceCountTokensRequest* request,
    v1::ChatServiceCountTokensResponse* response) {
  const UnaryCall call("CountTokens", *context, parts_, *request, *response, UnaryCall::kAnyBytes);
  auto status = call.Admit();
  if (status.ok()) status = CheckSessionId(request->session_id());
  absl::StatusOr<std::vector<StoredImage>> images;
  if (status.ok()) {
    // As in Chat.
    auto& taken = const_cast<v1::ChatServiceCountTokensRequest&>(*request);
    images = ReadMessage(taken.text(), taken.mutable_images(), parts_.options);
    status = images.status();
  }
  ForOwner(
      call, status, request->session_id(),
      [this, call, request, response, images = std::move(images), deadline = context->deadline()] {
        call.scope().Hold(nullptr);  // the language service takes its time
        if (auto charged = parts_.gate.ChargeRequest(call.scope().caller()); !charged.ok()) {
          return call.Finish(charged);
        }
        TokenCount::Start(parts_, call, *request, *images, deadline, response);
      });
  return call.reactor();
}

}  // namespace llava
