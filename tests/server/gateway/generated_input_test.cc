// Every field of every request of the chat API with every kind of bad value, made from the
// descriptors: each call ends with a status that blames the caller and names the field, and the
// session stays as it was.

#include <gmock/gmock.h>
#include <google/protobuf/dynamic_message.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/server/gateway/gateway_harness.h"
#include "tests/support/generic_call.h"

namespace llava {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::MethodDescriptor;
using google::protobuf::Reflection;

// A request with one field spoiled.
struct Spoiled {
  std::string what;  // "sampling.temperature = nan"
  // One of them must stand in the message: the field, those around it, those in it.
  std::vector<std::string> names;
  std::unique_ptr<Message> request;
  bool not_utf8 = false;
};

const std::string& BadUtf8() {
  static const std::string* text = new std::string("caf\xe9\xff");
  return *text;
}

// Finds the message that `path` leads to in `root`, filling in what is not there.
Message* Descend(Message* root, const std::vector<const FieldDescriptor*>& path) {
  for (const FieldDescriptor* field : path) {
    const Reflection* reflection = root->GetReflection();
    if (!field->is_repeated()) {
      root = reflection->MutableMessage(root, field);
    } else if (reflection->FieldSize(*root, field) > 0) {
      root = reflection->MutableRepeatedMessage(root, field, 0);
    } else {
      root = reflection->AddMessage(root, field);
    }
  }
  return root;
}

class Spoiler {
 public:
  explicit Spoiler(const Message& good) : good_(good) {}

  std::vector<Spoiled> All() {
    Visit(*good_.GetDescriptor(), {});
    return std::move(all_);
  }

 private:
  using Path = std::vector<const FieldDescriptor*>;

  void Visit(const google::protobuf::Descriptor& type, const Path& path) {
    if (path.size() > 3) return;
    for (int i = 0; i < type.field_count(); ++i) {
      const FieldDescriptor* field = type.field(i);
      Spoil(path, field);
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !field->is_map()) {
        Path deeper = path;
        deeper.push_back(field);
        Visit(*field->message_type(), deeper);
      }
    }
  }

  void Add(const Path& path, const FieldDescriptor* field, const std::string& value,
           const std::function<void(Message*, const Reflection*)>& set, bool not_utf8 = false) {
    Spoiled spoiled;
    spoiled.names.push_back(field->name());
    for (const FieldDescriptor* each : path) {
      absl::StrAppend(&spoiled.what, each->name(), ".");
      spoiled.names.push_back(each->name());
    }
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      for (int i = 0; i < field->message_type()->field_count(); ++i) {
        spoiled.names.push_back(field->message_type()->field(i)->name());
      }
    }
    absl::StrAppend(&spoiled.what, field->name(), " = ", value);
    spoiled.request.reset(good_.New());
    spoiled.request->CopyFrom(good_);
    spoiled.not_utf8 = not_utf8;
    Message* owner = Descend(spoiled.request.get(), path);
    set(owner, owner->GetReflection());
    all_.push_back(std::move(spoiled));
  }

  template <typename Value>
  void Number(const Path& path, const FieldDescriptor* field, std::vector<Value> values,
              void (Reflection::*set)(Message*, const FieldDescriptor*, Value) const,
              void (Reflection::*add)(Message*, const FieldDescriptor*, Value) const) {
    for (const Value value : values) {
      Add(path, field, absl::StrCat(value), [=](Message* owner, const Reflection* reflection) {
        if (field->is_repeated()) {
          for (int i = 0; i < 20'000; ++i) (reflection->*add)(owner, field, value);
        } else {
          (reflection->*set)(owner, field, value);
        }
      });
    }
  }

  void Spoil(const Path& path, const FieldDescriptor* field) {
    Add(path, field, "(missing)", [=](Message* owner, const Reflection* reflection) {
      reflection->ClearField(owner, field);
    });
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING:
        return Texts(path, field);
      case FieldDescriptor::CPPTYPE_MESSAGE:
        return Messages(path, field);
      case FieldDescriptor::CPPTYPE_ENUM:
        for (const int value : {-1, 77}) {
          Add(path, field, absl::StrCat(value), [=](Message* owner, const Reflection* reflection) {
            reflection->SetEnumValue(owner, field, value);
          });
        }
        return;
      case FieldDescriptor::CPPTYPE_INT32:
        return Number<int32_t>(path, field, {-1, INT32_MIN, INT32_MAX}, &Reflection::SetInt32,
                               &Reflection::AddInt32);
      case FieldDescriptor::CPPTYPE_INT64:
        return Number<int64_t>(path, field, {-1, INT64_MIN, INT64_MAX}, &Reflection::SetInt64,
                               &Reflection::AddInt64);
      case FieldDescriptor::CPPTYPE_UINT32:
        return Number<uint32_t>(path, field, {0, UINT32_MAX}, &Reflection::SetUInt32,
                                &Reflection::AddUInt32);
      case FieldDescriptor::CPPTYPE_UINT64:
        return Number<uint64_t>(path, field, {0, UINT64_MAX}, &Reflection::SetUInt64,
                                &Reflection::AddUInt64);
      case FieldDescriptor::CPPTYPE_FLOAT:
        return Number<float>(path, field,
                             {std::numeric_limits<float>::quiet_NaN(),
                              std::numeric_limits<float>::infinity(), -1e30F, 1e30F},
                             &Reflection::SetFloat, &Reflection::AddFloat);
      case FieldDescriptor::CPPTYPE_DOUBLE:
        return Number<double>(path, field,
                              {std::numeric_limits<double>::quiet_NaN(),
                               std::numeric_limits<double>::infinity(), -1e300, 1e300},
                              &Reflection::SetDouble, &Reflection::AddDouble);
      case FieldDescriptor::CPPTYPE_BOOL:
        return;  // both values are good ones
    }
  }

  void Texts(const Path& path, const FieldDescriptor* field) {
    const bool text = field->type() == FieldDescriptor::TYPE_STRING;
    const auto add = [&](const std::string& name, const std::string& value, bool not_utf8) {
      Add(
          path, field, name,
          [=](Message* owner, const Reflection* reflection) {
            if (field->is_repeated()) {
              const int times = value.size() > 1000 ? 5 : 300;  // within gRPC's own limit
              for (int i = 0; i < times; ++i) reflection->AddString(owner, field, value);
            } else {
              reflection->SetString(owner, field, value);
            }
          },
          not_utf8);
    };
    add("\"\"", "", false);
    add("(2 MB)", std::string(2u << 20, 'x'), false);
    add("(wrong)", "no such thing: ../../etc", false);
    add("(zeros)", std::string(8, '\0'), false);
    add("(foreign id)", std::string(32, 'a'), false);
    if (text) add("(not UTF-8)", BadUtf8(), true);
  }

  void Messages(const Path& path, const FieldDescriptor* field) {
    if (field->is_map()) return Maps(path, field);
    Add(path, field, "{}", [=](Message* owner, const Reflection* reflection) {
      reflection->ClearField(owner, field);
      if (field->is_repeated()) {
        for (int i = 0; i < 2000; ++i) reflection->AddMessage(owner, field);
      } else {
        reflection->MutableMessage(owner, field);
      }
    });
  }

  // Metadata: texts by text.
  void Maps(const Path& path, const FieldDescriptor* field) {
#ifdef __SANITIZE_THREAD__
    // Protobuf's header then lays out map fields otherwise than Debian's library was built.
    return;
#endif
    const auto fill = [=](Message* owner, const Reflection* reflection, const std::string& key,
                          const std::string& value) {
      Message* entry = reflection->AddMessage(owner, field);
      entry->GetReflection()->SetString(entry, field->message_type()->FindFieldByName("key"), key);
      entry->GetReflection()->SetString(entry, field->message_type()->FindFieldByName("value"),
                                        value);
    };
    Add(path, field, "(10,000 entries)", [=](Message* owner, const Reflection* reflection) {
      for (int i = 0; i < 10'000; ++i) fill(owner, reflection, absl::StrCat(i), "v");
    });
    Add(path, field, "(empty key)",
        [=](Message* owner, const Reflection* reflection) { fill(owner, reflection, "", "v"); });
    Add(path, field, "(huge value)", [=](Message* owner, const Reflection* reflection) {
      fill(owner, reflection, "k", std::string(1u << 20, 'v'));
    });
    Add(
        path, field, "(not UTF-8)",
        [=](Message* owner, const Reflection* reflection) {
          fill(owner, reflection, "k", BadUtf8());
        },
        true);
  }

  const Message& good_;
  std::vector<Spoiled> all_;
};

class GeneratedInputTest : public GatewayTest {
 protected:
  // A session with one answered turn, as the good requests mean it.
  void MakeSession() {
    session_ = NewSession();
    const Answer answer = Ask(Question(session_, "first"));
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    turn_ = answer.started.turn_id();
  }

  // What a method is asked when nothing is wrong.
  std::unique_ptr<Message> Good(const MethodDescriptor& method) {
    const Message* prototype =
        google::protobuf::MessageFactory::generated_factory()->GetPrototype(method.input_type());
    std::unique_ptr<Message> request(prototype->New());
    const auto set = [&](const char* name, const std::string& value) {
      const FieldDescriptor* field = method.input_type()->FindFieldByName(name);
      if (field != nullptr) request->GetReflection()->SetString(request.get(), field, value);
    };
    set("session_id", session_);
    set("turn_id", turn_);
    set("text", "hello");
    if (method.name() == "UpdateSession") {
      auto& update = static_cast<v1::UpdateSessionRequest&>(*request);
      update.mutable_session()->set_id(session_);
      update.mutable_session()->set_title("new title");
      for (const char* field :
           {"title", "system_prompt", "sampling", "metadata", "idle_expiry", "context_overflow"}) {
        update.mutable_update_mask()->add_paths(field);
      }
    }
    if (method.name() == "UploadImage") {
      auto& upload = static_cast<v1::UploadImageRequest&>(*request);
      upload.mutable_header()->set_session_id(session_);
      upload.mutable_header()->set_size_bytes(FakePicture(1).size());
    }
    return request;
  }

  grpc::Status Call(const MethodDescriptor& method, const Message& request) {
    std::vector<std::string> messages = {request.SerializeAsString()};
    if (method.client_streaming()) {
      v1::UploadImageRequest chunk;
      chunk.set_chunk(FakePicture(1));
      messages.push_back(chunk.SerializeAsString());
    }
    return CallByDescriptor(channel_, *Context(), method, messages);
  }

  std::string Snapshot() {
    v1::GetSessionRequest request;
    request.set_session_id(session_);
    v1::GetSessionResponse response;
    const auto status = stub_->GetSession(Context().get(), request, &response);
    if (!status.ok()) return status.error_message();
    response.mutable_session()->clear_last_used_time();
    std::string text = response.ShortDebugString();
    for (const v1::Turn& turn : Turns(session_)) absl::StrAppend(&text, turn.ShortDebugString());
    return text;
  }

  std::string session_, turn_;
};

TEST_F(GeneratedInputTest, EveryFieldOfEveryRequest) {
  options_.max_turn_bytes = 1u << 20;
  StartGateway();
  MakeSession();
  // Statuses that tell the caller that it is his request.
  const std::set<grpc::StatusCode> blames = {
      grpc::StatusCode::INVALID_ARGUMENT, grpc::StatusCode::NOT_FOUND,
      grpc::StatusCode::OUT_OF_RANGE,     grpc::StatusCode::FAILED_PRECONDITION,
      grpc::StatusCode::UNIMPLEMENTED,    grpc::StatusCode::ALREADY_EXISTS,
      grpc::StatusCode::DATA_LOSS};
  const auto* service = v1::ChatRequest::descriptor()->file()->FindServiceByName("ChatService");
  int calls = 0, refused = 0;
  for (int i = 0; i < service->method_count(); ++i) {
    const MethodDescriptor& method = *service->method(i);
    const auto good = Good(method);
    for (const Spoiled& spoiled : Spoiler(*good).All()) {
      const std::string before = Snapshot();
      SCOPED_TRACE(absl::StrCat(method.name(), ": ", spoiled.what));
      const grpc::Status status = Call(method, *spoiled.request);
      ++calls;
      if (status.ok()) {
        EXPECT_FALSE(spoiled.not_utf8);
        if (Snapshot() != before) MakeSession();
        // The good request meant the old one.
        continue;
      }
      ++refused;
      EXPECT_EQ(Snapshot(), before) << "a refused request changed the session";
      if (spoiled.not_utf8) {
        // gRPC's own parser refuses it, before we see it.
        EXPECT_TRUE(status.error_code() == grpc::StatusCode::INTERNAL ||
                    blames.contains(status.error_code()))
            << status.error_code();
        continue;
      }
      EXPECT_TRUE(blames.contains(status.error_code()))
          << status.error_code() << " " << status.error_message();
      EXPECT_GE(status.error_message().size(), 10u) << status.error_message();
      EXPECT_LE(status.error_message().size(), 1000u) << "the message repeats the input";
      if (status.error_code() == grpc::StatusCode::INVALID_ARGUMENT) {
        EXPECT_TRUE(std::any_of(spoiled.names.begin(), spoiled.names.end(),
                                [&](const std::string& name) {
                                  return absl::StrContains(status.error_message(), name);
                                }))
            << "does not name the field: " << status.error_message();
      }
    }
  }
  EXPECT_GT(calls, 300);
  EXPECT_GT(refused, 150);
  EXPECT_TRUE(Ask(Question(NewSession(), "still here")).status.ok());
}

}  // namespace
}  // namespace llava
