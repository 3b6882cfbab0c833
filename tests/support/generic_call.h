#pragma once

// Calls any method by its descriptor.

#include <google/protobuf/descriptor.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

namespace llava {

// Sends `requests` (serialized; one, or any number to a client stream) and returns how the call
// ends. Answers are read and dropped.
inline grpc::Status CallByDescriptor(const std::shared_ptr<grpc::Channel>& channel,
                                     grpc::ClientContext& context,
                                     const google::protobuf::MethodDescriptor& method,
                                     const std::vector<std::string>& requests) {
  grpc::CompletionQueue queue;
  grpc::GenericStub stub(channel);
  const std::string path = "/" + method.service()->full_name() + "/" + method.name();
  const auto call = stub.PrepareCall(&context, path, &queue);
  const auto wait = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr), wait();
  for (const std::string& request : requests) {
    const grpc::Slice slice(request);
    call->Write(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
    if (!wait()) break;
  }
  call->WritesDone(nullptr), wait();
  grpc::ByteBuffer answer;
  do {
    call->Read(&answer, nullptr);
  } while (wait());
  grpc::Status status;
  call->Finish(&status, nullptr), wait();
  queue.Shutdown();
  return status;
}

}  // namespace llava
