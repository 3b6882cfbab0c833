#include "server/gateway/request_size.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace llava {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

size_t BytesOf(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  const int count = field.is_repeated() ? reflection.FieldSize(message, &field) : 1;
  size_t bytes = 0;
  std::string scratch;
  for (int i = 0; i < count; ++i) {
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      bytes +=
          (field.is_repeated() ? reflection.GetRepeatedStringReference(message, &field, i, &scratch)
                               : reflection.GetStringReference(message, &field, &scratch))
              .size();
    } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      bytes += (field.is_repeated() ? reflection.GetRepeatedMessage(message, &field, i)
                                    : reflection.GetMessage(message, &field))
                   .ByteSizeLong();
    } else {
      bytes += sizeof(uint64_t);
    }
  }
  return bytes;
}

std::string LargestField(const Message& message) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  size_t most = reflection.GetUnknownFields(message).SpaceUsedExcludingSelfLong();
  const FieldDescriptor* largest = nullptr;
  for (const FieldDescriptor* field : fields) {
    const size_t bytes = BytesOf(message, *field);
    if (bytes <= most) continue;
    most = bytes;
    largest = field;
  }
  if (largest == nullptr) return "fields that are unknown here";
  const bool deeper =
      !largest->is_repeated() && largest->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
  return deeper ? absl::StrCat(largest->name(), ".",
                               LargestField(reflection.GetMessage(message, largest)))
                : std::string(largest->name());
}

}  // namespace

absl::Status CheckRequestBytes(const Message& request, uint64_t bytes, uint64_t most_bytes) {
  if (bytes <= most_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the request has ", bytes,
                                                 " bytes, this call takes at most ", most_bytes,
                                                 "; most of them are in ", LargestField(request)));
}

}  // namespace llava
