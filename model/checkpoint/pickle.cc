#include "model/checkpoint/pickle.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string_view>

namespace llava {
namespace {

using Kind = PickleValue::Kind;

constexpr std::string_view kOrderedDict = "collections.OrderedDict";
constexpr std::string_view kRebuildTensor = "torch._utils._rebuild_tensor_v2";
constexpr std::string_view kRebuildParameter = "torch._utils._rebuild_parameter";
constexpr std::string_view kKnownGlobals[] = {
    kOrderedDict,        kRebuildTensor,          kRebuildParameter,     "torch.FloatStorage",
    "torch.HalfStorage", "torch.BFloat16Storage", "torch.DoubleStorage", "torch.LongStorage",
    "torch.IntStorage",  "torch.ShortStorage",    "torch.CharStorage",   "torch.ByteStorage",
    "torch.BoolStorage",
};

constexpr size_t kMostArguments = 16;  // of a tensor or a storage; torch writes up to 7

// A byte can make a value, which takes a hundred. A tensor has about twenty.
constexpr size_t kMostValues = 1u << 20;

// Opcodes of the pickle format that torch.save uses.
enum Op : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNoneOp = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kEmptyList = ']',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kEmptyTuple = ')',
  kSetItems = 'u',
  kEmptyDict = '}',
  kProto = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

}  // namespace

// Runs the pickle's stack machine.
class Unpickler {
 public:
  Unpickler(std::span<const uint8_t> bytes, std::deque<PickleValue>& values)
      : bytes_(bytes), values_(values) {}

  const PickleValue* Run() {
    while (Step(Read<uint8_t>())) {
    }
    return Pop();
  }

 private:
  [[noreturn]] void Fail(const std::string& what) const {
    throw std::runtime_error("pickle, byte " + std::to_string(at_) + ": " + what);
  }

  std::string_view Take(uint64_t size) {
    if (size > bytes_.size() - at_) Fail("is cut off");
    const std::string_view taken(reinterpret_cast<const char*>(bytes_.data()) + at_, size);
    at_ += size;
    return taken;
  }
  template <typename T>
  T Read() {
    T value;
    std::memcpy(&value, Take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view Line() {
    const auto* begin = bytes_.data() + at_;
    const auto* end = std::find(begin, bytes_.data() + bytes_.size(), '\n');
    const std::string_view line = Take(end - begin);
    Take(1);
    return line;
  }

  PickleValue* New(Kind kind) {
    if (values_.size() == kMostValues) {
      Fail("has more than " + std::to_string(kMostValues) + " values");
    }
    values_.emplace_back().kind = kind;
    return &values_.back();
  }
  void Push(PickleValue* value) { stack_.push_back(value); }
  void PushNumber(Kind kind, int64_t number) {
    PickleValue* value = New(kind);
    value->number = number;
    Push(value);
  }
  void PushString(std::string_view text) {
    PickleValue* value = New(Kind::kString);
    value->text = text;
    Push(value);
  }
  PickleValue* Pop() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) Fail("takes from an empty stack");
    PickleValue* value = stack_.back();
    stack_.pop_back();
    return value;
  }
  PickleValue* Top() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) Fail("looks at an empty stack");
    return stack_.back();
  }
  // The values above the last mark.
  std::vector<PickleValue*> PopMark() {
    if (marks_.empty()) Fail("has no mark");
    const auto begin = stack_.begin() + static_cast<ptrdiff_t>(marks_.back());
    std::vector<PickleValue*> values(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return values;
  }
  void PushTuple(size_t count) {
    PickleValue* tuple = New(Kind::kTuple);
    tuple->items.resize(count);
    for (size_t i = count; i > 0; --i) tuple->items[i - 1] = Pop();
    Push(tuple);
  }
  void Put(uint32_t slot) { memo_[slot] = Top(); }
  void Get(uint32_t slot) {
    const auto found = memo_.find(slot);
    if (found == memo_.end()) Fail("reads the empty memo slot " + std::to_string(slot));
    Push(found->second);
  }
  PickleValue* Expect(PickleValue* value, Kind kind, const char* what) {
    if (value->kind != kind) Fail(std::string("is damaged: ") + what + " is expected");
    return value;
  }

  void PushGlobal(std::string_view module, std::string_view name) {
    PickleValue* value = New(Kind::kGlobal);
    value->text = std::string(module) + "." + std::string(name);
    if (std::find(std::begin(kKnownGlobals), std::end(kKnownGlobals), value->text) ==
        std::end(kKnownGlobals)) {
      std::string shown;  // the name comes from the file: no control characters into logs
      for (const char c : value->text.substr(0, 200)) shown += c >= ' ' && c < 127 ? c : '?';
      Fail("refers to " + shown +
           ", which a file of tensors does not need; it is refused because such a file can run "
           "any program. Save the weights alone (a state_dict) or as safetensors");
    }
    Push(value);
  }

  // The items of a tuple that tells of one tensor or storage. A file can name the same long tuple
  // again and again in two bytes, and each copy of it would take memory.
  const std::vector<const PickleValue*>& Few(const PickleValue* tuple, const char* what) const {
    if (tuple->items.size() > kMostArguments) {
      Fail(std::string("is damaged: ") + what + " of " + std::to_string(tuple->items.size()) +
           " values, at most " + std::to_string(kMostArguments) + " are expected");
    }
    return tuple->items;
  }

  void Reduce() {
    PickleValue* arguments = Expect(Pop(), Kind::kTuple, "a tuple of arguments");
    const std::string& function = Expect(Pop(), Kind::kGlobal, "a known function")->text;
    if (function == kOrderedDict) {
      if (!arguments->items.empty()) Fail("fills an OrderedDict in an unknown way");
      Push(New(Kind::kDict));
    } else if (function == kRebuildTensor) {
      PickleValue* tensor = New(Kind::kTensor);
      tensor->items = Few(arguments, "a tensor");
      Push(tensor);
    } else if (function == kRebuildParameter) {
      if (arguments->items.empty() || arguments->items[0]->kind != Kind::kTensor) {
        Fail("rebuilds a parameter from something that is no tensor");
      }
      PickleValue* tensor = New(Kind::kTensor);
      tensor->items = arguments->items[0]->items;
      Push(tensor);
    } else {
      Fail("calls " + function);
    }
  }

  void SetItems(PickleValue* dict, const std::vector<PickleValue*>& values) {
    Expect(dict, Kind::kDict, "a dictionary");
    if (values.size() % 2 != 0) Fail("has a key without a value");
    for (size_t i = 0; i < values.size(); i += 2)
      dict->entries.emplace_back(values[i], values[i + 1]);
  }
  void AppendItems(PickleValue* list, const std::vector<PickleValue*>& values) {
    Expect(list, Kind::kList, "a list");
    list->items.insert(list->items.end(), values.begin(), values.end());
  }

  void PushLong(std::string_view bytes) {
    if (bytes.size() > 8) Fail("has an integer of more than 64 bits");
    uint64_t value = 0;
    std::memcpy(&value, bytes.data(), bytes.size());
    const bool negative = !bytes.empty() && static_cast<uint8_t>(bytes.back()) >= 0x80;
    if (negative && bytes.size() < 8) value |= ~uint64_t{0} << (8 * bytes.size());
    PushNumber(Kind::kInt, static_cast<int64_t>(value));
  }
  void PushFloat(std::string_view bytes) {  // big-endian, unlike everything else
    uint64_t bits = 0;
    for (const char c : bytes) bits = bits << 8 | static_cast<uint8_t>(c);
    PickleValue* value = New(Kind::kFloat);
    value->real = std::bit_cast<double>(bits);
    Push(value);
  }

  // Executes one instruction; false at the end.
  bool Step(uint8_t op) {
    switch (op) {
      case kProto:
        if (const int version = Read<uint8_t>(); version < 2 || version > 5) {
          Fail("has the unknown protocol " + std::to_string(version));
        }
        break;
      case kFrame:
        Read<uint64_t>();
        break;
      case kStop:
        return false;
      case kMark:
        marks_.push_back(stack_.size());
        break;
      case kPop:
        Pop();
        break;
      case kNoneOp:
        Push(New(Kind::kNone));
        break;
      case kNewTrue:
        PushNumber(Kind::kBool, 1);
        break;
      case kNewFalse:
        PushNumber(Kind::kBool, 0);
        break;
      case kBinInt:
        PushNumber(Kind::kInt, Read<int32_t>());
        break;
      case kBinInt1:
        PushNumber(Kind::kInt, Read<uint8_t>());
        break;
      case kBinInt2:
        PushNumber(Kind::kInt, Read<uint16_t>());
        break;
      case kLong1:
        PushLong(Take(Read<uint8_t>()));
        break;
      case kBinFloat:
        PushFloat(Take(8));
        break;
      case kShortBinString:
      case kShortBinUnicode:
        PushString(Take(Read<uint8_t>()));
        break;
      case kBinString:
      case kBinUnicode:
        PushString(Take(Read<uint32_t>()));
        break;
      case kBinUnicode8:
        PushString(Take(Read<uint64_t>()));
        break;
      case kEmptyDict:
        Push(New(Kind::kDict));
        break;
      case kEmptyList:
        Push(New(Kind::kList));
        break;
      case kEmptyTuple:
        Push(New(Kind::kTuple));
        break;
      case kTuple1:
        PushTuple(1);
        break;
      case kTuple2:
        PushTuple(2);
        break;
      case kTuple3:
        PushTuple(3);
        break;
      case kTuple: {
        const std::vector<PickleValue*> values = PopMark();
        PickleValue* tuple = New(Kind::kTuple);
        tuple->items.assign(values.begin(), values.end());
        Push(tuple);
        break;
      }
      case kSetItem: {
        PickleValue* value = Pop();
        PickleValue* key = Pop();
        SetItems(Top(), {key, value});
        break;
      }
      case kSetItems: {
        const std::vector<PickleValue*> values = PopMark();
        SetItems(Top(), values);
        break;
      }
      case kAppend: {
        PickleValue* value = Pop();
        AppendItems(Top(), {value});
        break;
      }
      case kAppends: {
        const std::vector<PickleValue*> values = PopMark();
        AppendItems(Top(), values);
        break;
      }
      case kBinPut:
        Put(Read<uint8_t>());
        break;
      case kLongBinPut:
        Put(Read<uint32_t>());
        break;
      case kMemoize:
        Put(static_cast<uint32_t>(memo_.size()));
        break;
      case kBinGet:
        Get(Read<uint8_t>());
        break;
      case kLongBinGet:
        Get(Read<uint32_t>());
        break;
      case kGlobal: {
        const std::string_view module = Line();
        PushGlobal(module, Line());
        break;
      }
      case kStackGlobal: {
        const PickleValue* name = Expect(Pop(), Kind::kString, "a name");
        PushGlobal(Expect(Pop(), Kind::kString, "a module")->text, name->text);
        break;
      }
      case kBinPersId: {
        PickleValue* value = New(Kind::kPersistent);
        value->items = Few(Expect(Pop(), Kind::kTuple, "a tuple"), "a storage");
        Push(value);
        break;
      }
      case kReduce:
        Reduce();
        break;
      case kBuild:
        // The state of an OrderedDict is its _metadata (module versions): of no use here.
        Expect(Pop(), Kind::kDict, "a dictionary of attributes");
        Expect(Top(), Kind::kDict, "a dictionary");
        break;
      default: {
        char code[8];
        std::snprintf(code, sizeof code, "0x%02x", op);
        Fail(std::string("has the unexpected instruction ") + code);
      }
    }
    return true;
  }

  std::span<const uint8_t> bytes_;
  std::deque<PickleValue>& values_;
  size_t at_ = 0;
  std::vector<PickleValue*> stack_;
  std::vector<size_t> marks_;  // stack sizes
  std::unordered_map<uint32_t, PickleValue*> memo_;
};

Pickle::Pickle(std::span<const uint8_t> bytes) { root_ = Unpickler(bytes, values_).Run(); }

}  // namespace llava
