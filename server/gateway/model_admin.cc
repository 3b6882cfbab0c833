#include "server/gateway/model_admin.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/gateway/call_fault.h"
#include "server/runtime/mutex.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

using Stub = v1::ModelService::StubInterface::async_interface;

bool IsForeign(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsUnimplemented(status);
}

bool Serves(const Backend& backend, const std::string& name) {
  const ModelTable table = backend.table();
  return std::any_of(table.models.begin(), table.models.end(),
                     [&](const v1::ModelInfo& each) { return each.model().name() == name; });
}

}  // namespace

// One request to each of several processes. Lives in its callbacks.
template <typename Request, typename Response>
class ModelAdmin::FanOut {
 public:
  using Method = void (Stub::*)(grpc::ClientContext*, const Request*, Response*,
                                std::function<void(grpc::Status)>);
  struct Part {
    explicit Part(Target asked) : target(std::move(asked)), context(*target.backend) {}
    const Target target;
    CallContext context;
    Response response;
    absl::Status status;
    bool broken_off = false;  // by the gateway's end: it may have been done
  };
  using Done = std::function<void(const std::deque<Part>&)>;

  // `targets` is not empty.
  static void Start(ModelAdmin& admin, const std::vector<Target>& targets, const Request& request,
                    const Call& call, Method method, Done done) {
    std::shared_ptr<FanOut> self(new FanOut(admin, request, std::move(done)));
    for (const Target& target : targets) self->parts_.emplace_back(target);
    self->left_ = self->parts_.size();
    // A Stop that comes behind this cancels what is in calls_.
    if (!admin.calls_.Add(self.get(), [self] { self->Cancel(); })) {
      for (Part& part : self->parts_) part.status = ShuttingDown();
      return self->done_(self->parts_);
    }
    for (Part& part : self->parts_) {
      part.context->set_deadline(call.deadline);
      part.context->AddMetadata("x-request-id", call.request_id);
      (part.target.backend->models().async()->*method)(
          part.context.get(), &self->request_, &part.response,
          [self, &part](const grpc::Status& status) { self->OnAnswer(part, FromGrpc(status)); });
    }
  }

 private:
  FanOut(ModelAdmin& admin, const Request& request, Done done)
      : admin_(admin), request_(request), done_(std::move(done)) {}

  void Cancel() {
    cancelled_ = true;
    for (Part& part : parts_) part.context->TryCancel();
  }

  void OnAnswer(Part& part, const absl::Status& status) {
    part.broken_off = absl::IsCancelled(status) && cancelled_;
    part.status = part.broken_off ? ShuttingDown() : status;
    {
      MutexLock lock(mutex_);
      if (--left_ > 0) return;
    }
    admin_.calls_.Remove(this);  // the callback holds it
    done_(parts_);
  }

  ModelAdmin& admin_;
  const Request request_;
  const Done done_;
  std::deque<Part> parts_;  // they cannot move
  std::atomic<bool> cancelled_ = false;
  Mutex mutex_;
  size_t left_ LLAVA_GUARDED_BY(mutex_) = 0;
};

std::vector<ModelAdmin::Target> ModelAdmin::Targets(const std::string& name) const {
  std::vector<Target> targets;
  for (const BackendPool* pool : {&vision_, &llm_}) {
    const auto backends = pool->all();
    const bool known = std::any_of(backends.begin(), backends.end(),
                                   [&name](const auto& each) { return Serves(*each, name); });
    for (const auto& backend : backends) targets.push_back({backend, pool, known});
  }
  if (std::any_of(targets.begin(), targets.end(), [](const Target& each) { return each.known; })) {
    std::erase_if(targets, [](const Target& each) { return !each.known; });
  }
  return targets;
}

absl::Status ModelAdmin::List(const std::string& name, v1::ListModelsResponse* response) const {
  for (const BackendPool* pool : {&vision_, &llm_}) {
    ModelTable table = pool->table();
    if (!table.status.ok()) return table.status;
    std::map<VersionId, std::vector<std::string>> processes;
    for (const auto& backend : pool->all()) {
      const ModelTable own = backend->table();
      if (!own.status.ok()) continue;
      for (const v1::ModelInfo& model : own.models) {
        processes[IdOf(model.model())].push_back(backend->Describe());
      }
    }
    for (v1::ModelInfo& model : table.models) {
      if (!name.empty() && name != model.model().name()) continue;
      for (const std::string& each : processes[IdOf(model.model())]) model.add_processes(each);
      *response->add_models() = std::move(model);
    }
  }
  return absl::OkStatus();
}

void ModelAdmin::GetStatus(const v1::GetModelStatusRequest& request, const Call& call,
                           Done<v1::GetModelStatusResponse> done) {
  std::vector<Target> targets;
  for (const BackendPool* pool : {&vision_, &llm_}) {
    for (const auto& backend : pool->all()) targets.push_back({backend, pool, true});
  }
  if (targets.empty()) return done(llm_.table().status);
  FanOut<v1::GetModelStatusRequest, v1::GetModelStatusResponse>::Start(
      *this, targets, request, call, &Stub::GetModelStatus,
      [name = request.model().name(), done = std::move(done)](const auto& parts) {
        v1::GetModelStatusResponse joined;
        bool known = false;
        absl::Status silent;
        for (const auto& part : parts) {
          const std::string process = part.target.backend->Describe();
          if (part.status.ok()) {
            known = true;
            for (v1::ModelVersionStatus version : part.response.versions()) {
              version.set_process(process);
              *joined.add_versions() = std::move(version);
            }
          } else if (!absl::IsNotFound(part.status)) {  // each service knows only its own models
            const absl::Status why = part.target.backend->Explain(part.status);
            (*joined.mutable_silent_processes())[process] = std::string(why.message());
            if (silent.ok()) silent = why;
          }
        }
        if (known) return done(std::move(joined));
        if (!silent.ok()) return done(silent);
        done(absl::NotFoundError(absl::StrCat("no model \"", name, "\" in any service")));
      });
}

template <typename Request, typename Response, typename Method>
void ModelAdmin::Change(const std::string& name, const Request& request, const Call& call,
                        Method method,
                        std::function<Response(const std::vector<const Response*>&)> merge,
                        Done<Response> done) {
  const auto targets = Targets(name);
  if (targets.empty()) return done(llm_.table().status);
  const auto finish = [this, merge = std::move(merge), done = std::move(done)](const auto& parts) {
    std::set<const BackendPool*> counting;
    for (const auto& part : parts) {
      if (part.target.known || part.status.ok()) counting.insert(part.target.pool);
    }
    std::vector<const Response*> answers;
    std::vector<std::string> faults;
    absl::Status first;
    size_t asked = 0;
    for (const auto& part : parts) {
      if (!counting.empty() && !counting.contains(part.target.pool)) continue;
      ++asked;
      if (part.status.ok()) {
        answers.push_back(&part.response);
        continue;
      }
      const absl::Status why = part.target.backend->Explain(part.status);
      faults.push_back(absl::StrCat(part.target.backend->Describe(), ": ",
                                    absl::StatusCodeToString(part.status.code()), ": ",
                                    std::string(part.status.message())));
      // When nobody knows the model, the one that knows why not is worth more.
      if (first.ok() || (IsForeign(first) && !IsForeign(why))) first = why;
    }
    absl::StatusOr<Response> result = absl::UnknownError("");
    if (first.ok()) {
      result = merge(answers);
    } else {
      absl::Status failed(first.code(), absl::StrCat("done by ", answers.size(), " of ", asked,
                                                     " processes; ", absl::StrJoin(faults, "; ")));
      first.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
        failed.SetPayload(url, payload);
      });
      result = failed;
    }
    // What the caller asks next sees the change.
    router_.Refresh([done, result = std::move(result)] { done(result); });
  };
  FanOut<Request, Response>::Start(*this, targets, request, call, method, finish);
}

void ModelAdmin::Load(const v1::LoadModelRequest& request, const Call& call,
                      Done<v1::LoadModelResponse> done) {
  Change<v1::LoadModelRequest, v1::LoadModelResponse>(
      request.model().name(), request, call,
      static_cast<FanOut<v1::LoadModelRequest, v1::LoadModelResponse>::Method>(&Stub::LoadModel),
      [](const auto& answers) { return *answers.front(); }, std::move(done));
}

void ModelAdmin::Unload(const v1::UnloadModelRequest& request, const Call& call,
                        Done<v1::UnloadModelResponse> done) {
  Change<v1::UnloadModelRequest, v1::UnloadModelResponse>(
      request.model().name(), request, call,
      static_cast<FanOut<v1::UnloadModelRequest, v1::UnloadModelResponse>::Method>(
          &Stub::UnloadModel),
      [](const auto& answers) { return *answers.front(); }, std::move(done));
}

void ModelAdmin::SetLabel(const v1::SetLabelRequest& request, const Call& call,
                          Done<v1::SetLabelResponse> done) {
  Change<v1::SetLabelRequest, v1::SetLabelResponse>(
      request.name(), request, call,
      static_cast<FanOut<v1::SetLabelRequest, v1::SetLabelResponse>::Method>(&Stub::SetLabel),
      [version = request.version()](const auto& answers) {
        // The first of those that share a repository saw what was there before.
        v1::SetLabelResponse merged = *answers.front();
        for (const v1::SetLabelResponse* each : answers) {
          if (each->previous_version() != version) merged = *each;
        }
        return merged;
      },
      std::move(done));
}

void ModelAdmin::Rollback(const v1::RollbackRequest& request, const Call& call,
                          Done<v1::RollbackResponse> done) {
  auto targets = std::make_shared<std::vector<Target>>(Targets(request.name()));
  if (targets->empty()) return done(llm_.table().status);
  StepBack(std::move(targets), 0, absl::OkStatus(), request, call, std::move(done));
}

void ModelAdmin::StepBack(std::shared_ptr<std::vector<Target>> targets, size_t next,
                          absl::Status why, const v1::RollbackRequest& request, const Call& call,
                          Done<v1::RollbackResponse> done) {
  if (next == targets->size()) return done(why);
  const bool was_up = (*targets)[next].backend->up();
  FanOut<v1::RollbackRequest, v1::RollbackResponse>::Start(
      *this, {(*targets)[next]}, request, call, &Stub::Rollback, [=, this](const auto& parts) {
        const auto& part = parts.front();
        if (!part.status.ok()) {
          // The next one may hold the model at all. One that may have stepped back is not followed.
          const absl::Status fault = part.target.backend->Explain(part.status);
          // A service that ends cancels its calls.
          const bool was_lost = absl::IsCancelled(part.status) ||
                                (absl::IsUnavailable(part.status) && !RetryAfter(part.status));
          if (part.broken_off || (was_up && was_lost)) {
            return done(absl::FailedPreconditionError(absl::StrCat(
                part.target.backend->Describe(), " was lost during the call and may have gone ",
                "back: ", part.status.message(), "; look at ListModels before you repeat it")));
          }
          if (part.target.known && !IsForeign(part.status) && !absl::IsUnavailable(part.status)) {
            return done(fault);
          }
          return StepBack(targets, next + 1,
                          why.ok() || (IsForeign(why) && !IsForeign(fault)) ? fault : why, request,
                          call, done);
        }
        v1::SetLabelRequest label;
        label.set_name(request.name());
        label.set_label(kStableLabel);
        label.set_version(part.response.stable().version());
        SetLabel(label, call, [done, response = part.response](const auto& labelled) {
          if (labelled.ok()) return done(response);
          // No code that invites to repeat it: that would be one more step.
          const v1::ModelVersion& stable = response.stable();
          done(absl::FailedPreconditionError(
              absl::StrCat("\"", stable.name(), "\" went back to version ", stable.version(),
                           ", which not all processes know: ", labelled.status().message(),
                           "; tell them with SetLabel ", kStableLabel, " ", stable.version(),
                           ", and do not repeat Rollback, which would go back once more")));
        });
      });
}

}  // namespace llava
