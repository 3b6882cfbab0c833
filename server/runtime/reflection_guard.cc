#include "server/runtime/reflection_guard.h"

#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>

#include <string>
#include <utility>

namespace llava {
namespace {

using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::Interceptor;
using grpc::experimental::InterceptorBatchMethods;
using grpc::experimental::ServerRpcInfo;

class ReflectionGuard : public Interceptor {
 public:
  ReflectionGuard(const AccessGuard& guard, ServerRpcInfo* info) : guard_(guard), info_(info) {}

  void Intercept(InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_INITIAL_METADATA)) {
      std::string_view authorization;
      const auto* metadata = methods->GetRecvInitialMetadata();
      if (metadata != nullptr) {
        if (const auto found = metadata->find("authorization"); found != metadata->end()) {
          authorization = {found->second.data(), found->second.size()};
        }
      }
      if (const auto status = guard_(authorization); !status.ok()) {
        // TryCancel would tell the client CANCELLED without a word.
        grpc_call_cancel_with_status(info_->server_context()->c_call(),
                                     static_cast<grpc_status_code>(status.code()),
                                     std::string(status.message()).c_str(), nullptr);
      }
    }
    methods->Proceed();
  }

 private:
  const AccessGuard& guard_;
  ServerRpcInfo* const info_;
};

class Factory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit Factory(AccessGuard guard) : guard_(std::move(guard)) {}

  Interceptor* CreateServerInterceptor(ServerRpcInfo* info) override {
    constexpr std::string_view kPrefix = "/grpc.reflection.";
    const std::string_view method = info->method() == nullptr ? "" : info->method();
    if (method.substr(0, kPrefix.size()) != kPrefix) return nullptr;
    return new ReflectionGuard(guard_, info);
  }

 private:
  const AccessGuard guard_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeReflectionGuard(
    AccessGuard guard) {
  return std::make_unique<Factory>(std::move(guard));
}

}  // namespace llava
