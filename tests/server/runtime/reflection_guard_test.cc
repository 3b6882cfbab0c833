#include "server/runtime/reflection_guard.h"

#include <gmock/gmock.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace llava {
namespace {

// What a client sees that asks for the list of services: bytes of the answer, and the end.
std::pair<size_t, grpc::Status> ListServices(int port, const std::string& key) {
  grpc::GenericStub stub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  if (!key.empty()) context.AddMetadata("authorization", key);
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  const auto wait = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr), wait();
  grpc::Slice list("\x3a\x01*");  // field 7, list_services
  call->Write(grpc::ByteBuffer(&list, 1), grpc::WriteOptions(), nullptr), wait();
  call->WritesDone(nullptr), wait();
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  const size_t bytes = wait() ? answer.Length() : 0;
  grpc::Status status;
  call->Finish(&status, nullptr), wait();
  queue.Shutdown();
  return {bytes, status};
}

TEST(ReflectionGuardTest, TellsStrangersNothingButWhy) {
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> creators;
  creators.push_back(MakeReflectionGuard([](std::string_view authorization) {
    return authorization == "Bearer good" ? absl::OkStatus()
                                          : absl::UnauthenticatedError("a key, please");
  }));
  builder.experimental().SetInterceptorCreators(std::move(creators));
  const auto server = builder.BuildAndStart();
  ASSERT_TRUE(server);
  for (int round = 0; round < 50; ++round) {
    for (const char* key : {"", "Bearer bad"}) {
      const auto [bytes, status] = ListServices(port, key);
      EXPECT_EQ(bytes, 0u);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
      EXPECT_EQ(status.error_message(), "a key, please");
    }
    const auto [bytes, status] = ListServices(port, "Bearer good");
    EXPECT_GT(bytes, 20u);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
  server->Shutdown();
}

}  // namespace
}  // namespace llava
