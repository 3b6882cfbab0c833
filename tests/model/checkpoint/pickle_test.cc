#include "model/checkpoint/pickle.h"

#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/tensor_file.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using namespace std::string_literals;
using testing::HasSubstr;
using Kind = PickleValue::Kind;

std::span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::string PickleError(const std::string& bytes) {
  return ErrorOf([&] { Pickle pickle(Bytes(bytes)); });
}

std::string Number(uint32_t value) { return std::string(reinterpret_cast<const char*>(&value), 4); }
std::string Text(const std::string& text) {
  return "X" + Number(static_cast<uint32_t>(text.size())) + text;
}
std::string Int(uint32_t value) { return "J" + Number(value); }

// A torch.save archive: stored members with zip headers as far as the reader looks at them.
std::string Archive(const std::map<std::string, std::string>& members) {
  const auto half = [](size_t value) {
    const auto number = static_cast<uint16_t>(value);
    return std::string(reinterpret_cast<const char*>(&number), 2);
  };
  std::string zip, directory;
  for (const auto& [name, data] : members) {
    const std::string sizes = Number(static_cast<uint32_t>(data.size())) +
                              Number(static_cast<uint32_t>(data.size())) + half(name.size());
    directory += "PK\1\2" + std::string(16, '\0') + sizes + std::string(12, '\0') +
                 Number(static_cast<uint32_t>(zip.size())) + name;
    zip += "PK\3\4" + std::string(14, '\0') + sizes + half(0) + name + data;
  }
  return zip + directory + "PK\5\6" + std::string(6, '\0') + half(members.size()) +
         Number(static_cast<uint32_t>(directory.size())) +
         Number(static_cast<uint32_t>(zip.size())) + half(0);
}

// The value of one tensor: rebuild(persistent storage "0", offset, size, stride, False, {}).
std::string TensorPickle(const std::string& storage_class, uint32_t elements, uint32_t offset,
                         const std::string& size, const std::string& stride) {
  return "ctorch._utils\n_rebuild_tensor_v2\n((" + Text("storage") + "ctorch\n" + storage_class +
         "\n" + Text("0") + Text("cpu") + Int(elements) + "tQ" + Int(offset) + size + stride +
         "\x89" + "ccollections\nOrderedDict\n)RtR";
}
std::string DictPickle(const std::string& value) { return "\x80\x02}" + Text("w") + value + "s."; }

at::Tensor Load(const std::string& pickle, const std::string& storage) {
  const TempFolder folder;
  WriteBytes(folder.path() / "m.bin", Archive({{"m/data.pkl", pickle}, {"m/data/0", storage}}));
  return TensorFile::Open(folder.path() / "m.bin")->Get("w").clone();
}

std::string Floats(int count) {
  std::string bytes;
  for (int i = 0; i < count; ++i) {
    const auto value = static_cast<float>(i);
    bytes.append(reinterpret_cast<const char*>(&value), 4);
  }
  return bytes;
}

TEST(PickleTest, ReadsPlainValues) {
  const std::string bytes =
      "\x80\x02}(" + Text("int") + Int(static_cast<uint32_t>(-5)) + Text("byte") + "K\xc8" +
      Text("short") + "M\x01\x02" + Text("long") + "\x8a\x05\xff\xff\xff\xff\xff" + Text("float") +
      "G\x3f\xf8\0\0\0\0\0\0"s + Text("yes") + "\x88" + Text("none") + "N" + Text("list") +
      "](K\1K\2eq\1" + Text("again") + "h\1" + Text("pair") + "K\3K\4\x86u.";
  const Pickle pickle(Bytes(bytes));
  ASSERT_EQ(pickle.root().kind, Kind::kDict);
  std::map<std::string, const PickleValue*> values;
  for (const auto& [key, value] : pickle.root().entries) values[key->text] = value;
  EXPECT_EQ(values.at("int")->number, -5);
  EXPECT_EQ(values.at("byte")->number, 200);
  EXPECT_EQ(values.at("short")->number, 513);
  EXPECT_EQ(values.at("long")->number, -1);
  EXPECT_EQ(values.at("float")->real, 1.5);
  EXPECT_EQ(values.at("yes")->kind, Kind::kBool);
  EXPECT_EQ(values.at("none")->kind, Kind::kNone);
  EXPECT_EQ(values.at("list")->items.size(), 2u);
  EXPECT_EQ(values.at("again"), values.at("list"));
  EXPECT_EQ(values.at("pair")->items[1]->number, 4);
}

TEST(PickleTest, RefusesEverythingThatCouldRun) {
  for (const std::string& name : {"os\nsystem"s, "builtins\neval"s, "torch\nload"s,
                                  "collections\nOrderedDictX"s, "torch\nFloatStorage.x"s}) {
    std::string dotted = name;
    dotted[dotted.find('\n')] = '.';
    EXPECT_THAT(PickleError("\x80\x02"
                            "c" +
                            name + "\n(" + Text("id") + "tR."),
                HasSubstr(dotted));
  }
  EXPECT_THAT(PickleError("\x80\x04" + Text("os") + Text("system") + "\x93."),
              HasSubstr("os.system"));
  // INST, OBJ, NEWOBJ, EXT1: other ways to call something.
  for (const char op : {'i', 'o', '\x81', '\x82'}) {
    EXPECT_THAT(PickleError("\x80\x02("s + op + "."), HasSubstr("unexpected instruction"));
  }
  EXPECT_THAT(PickleError("\x80\x02"
                          "ctorch\nFloatStorage\n)R."),
              HasSubstr("calls torch.Float"));
}

TEST(PickleTest, RefusesNonsense) {
  EXPECT_THAT(PickleError(""), HasSubstr("cut off"));
  EXPECT_THAT(PickleError("."), HasSubstr("empty stack"));
  EXPECT_THAT(PickleError("h\5."), HasSubstr("memo slot 5"));
  EXPECT_THAT(PickleError("t."), HasSubstr("no mark"));
  EXPECT_THAT(PickleError("(K\1."), HasSubstr(""));
  EXPECT_THAT(PickleError("}(K\1u."), HasSubstr("without a value"));
  EXPECT_THAT(PickleError("K\1K\2a."), HasSubstr("a list is expected"));
  EXPECT_THAT(PickleError("\x80\x01."), HasSubstr("protocol 1"));
  EXPECT_THAT(PickleError("X\xff\xff\xff\xffhello"), HasSubstr("cut off"));
  EXPECT_THAT(PickleError("\x8a\x09"
                          "123456789."),
              HasSubstr("64 bits"));
}

// Two bytes must not copy a tuple of any length: 200 KB would take 80 GB.
TEST(PickleTest, RefusesLongTuplesForTensorsAndStorages) {
  const auto tuple = [](int size) {
    std::string values;
    for (int i = 0; i < size; ++i) values += "K\1";
    return "(" + values + "tq\1";
  };
  EXPECT_EQ(PickleError(tuple(16) + "Q."), "");
  EXPECT_THAT(PickleError(tuple(17) + "Q."), HasSubstr("a storage of 17 values, at most 16"));
  const std::string rebuild = "ctorch._utils\n_rebuild_tensor_v2\n";
  EXPECT_EQ(PickleError(rebuild + tuple(16) + "R."), "");
  EXPECT_THAT(PickleError(rebuild + tuple(17) + "R."),
              HasSubstr("a tensor of 17 values, at most 16"));
}

TEST(PickleTest, RefusesMoreValuesThanTensorsNeed) {
  EXPECT_THAT(PickleError(std::string(2'000'000, 'N') + "."),
              HasSubstr("has more than 1048576 values"));
}

// A list that holds itself and a nest of a million tuples must neither leak nor overflow.
TEST(PickleTest, SurvivesCyclesAndDeepNests) {
  const std::string cycle = "]q\1h\1a.";
  EXPECT_NO_THROW(Pickle{Bytes(cycle)});
  const std::string deep = "N" + std::string(1'000'000, '\x85') + ".";
  EXPECT_NO_THROW(Pickle{Bytes(deep)});
}

TEST(TorchArchiveTest, ReadsStridesOffsetsAndParameters) {
  const std::string transposed =
      TensorPickle("FloatStorage", 8, 1, Int(2) + Int(3) + "\x86", Int(1) + Int(2) + "\x86");
  const at::Tensor expected = at::arange(1, 7, at::kFloat).view({3, 2}).t();
  EXPECT_TRUE(at::equal(Load(DictPickle(transposed), Floats(8)), expected));
  const std::string parameter = "ctorch._utils\n_rebuild_parameter\n(" + transposed + "\x88" +
                                "ccollections\nOrderedDict\n)RtR";
  EXPECT_TRUE(at::equal(Load(DictPickle(parameter), Floats(8)), expected));
  EXPECT_EQ(Load(DictPickle(TensorPickle("LongStorage", 1, 0, ")", ")")), "\7\0\0\0\0\0\0\0"s)
                .item<int64_t>(),
            7);
}

TEST(TorchArchiveTest, RefusesTensorsOutsideTheirStorage) {
  const auto error = [](const std::string& tensor) {
    return ErrorOf([&] { Load(DictPickle(tensor), Floats(4)); });
  };
  const std::string two = Int(2) + "\x85", one = Int(1) + "\x85", big = Int(0x7fffffff) + "\x85";
  EXPECT_EQ(error(TensorPickle("FloatStorage", 4, 2, two, one)), "");
  EXPECT_THAT(error(TensorPickle("FloatStorage", 4, 3, two, one)), HasSubstr("does not fit"));
  EXPECT_THAT(error(TensorPickle("FloatStorage", 4, 0, two, big)), HasSubstr("does not fit"));
  EXPECT_THAT(error(TensorPickle("FloatStorage", 4, 0, big, Int(0) + "\x85")),
              HasSubstr("does not fit"));
  EXPECT_THAT(error(TensorPickle("FloatStorage", 5, 0, two, one)), HasSubstr("shorter"));
  EXPECT_THAT(error(TensorPickle("DoubleStorage", 4, 0, two, one)), HasSubstr("shorter"));
  EXPECT_THAT(error(TensorPickle("FloatStorage", 4, 0, two, ")")), HasSubstr("do not match"));
  EXPECT_THAT(error(TensorPickle("FloatStorage", 4, 0xffffffff, two, one)), HasSubstr("not fit"));
}

// Two bytes more must not copy the sizes of a tensor once more, whose tuple can have any length.
TEST(TorchArchiveTest, RefusesTensorsOfManyDimensions) {
  const auto error = [](size_t dimensions) {
    std::string ones;
    for (size_t i = 0; i < dimensions; ++i) ones += "K\1";
    const std::string tuple = "(" + ones + "tq\7";
    return ErrorOf(
        [&] { Load(DictPickle(TensorPickle("FloatStorage", 1, 0, tuple, "h\7")), Floats(1)); });
  };
  EXPECT_EQ(error(16), "");
  EXPECT_THAT(error(17), HasSubstr("tensor \"w\": it has more than 16 dimensions"));
}

TEST(TorchArchiveTest, RefusesPicklesThatAreTooLarge) {
  const std::string tensor = DictPickle(TensorPickle("FloatStorage", 1, 0, ")", ")"));
  const auto error = [&](size_t size) {
    const std::string padded = tensor + std::string(size - tensor.size(), '.');
    return ErrorOf([&] { Load(padded, Floats(1)); });
  };
  EXPECT_EQ(error(16u << 20), "");
  EXPECT_THAT(error((16u << 20) + 1),
              HasSubstr("its data.pkl has 16777217 bytes, at most 16777216"));
}

TEST(TorchArchiveTest, SaysWhatIsWrongWithTheArchive) {
  const TempFolder folder;
  const auto error = [&](const std::string& bytes) {
    WriteBytes(folder.path() / "m.bin", bytes);
    return ErrorOf([&] { TensorFile::Open(folder.path() / "m.bin"); });
  };
  const std::string tensor = DictPickle(TensorPickle("FloatStorage", 1, 0, ")", ")"));
  EXPECT_THAT(error(Archive({{"m/data.pkl", tensor}})), HasSubstr("storage is missing"));
  EXPECT_THAT(error(Archive({{"m/other", "x"}})), HasSubstr("without a data.pkl"));
  EXPECT_THAT(error(Archive({{"data.pkl", "\x80\x02}."}})), HasSubstr("no tensors"));
  EXPECT_THAT(error(Archive({{"data.pkl", "\x80\x02]."}})), HasSubstr("no dictionary"));
  EXPECT_THAT(error(Archive({{"m/data.pkl", tensor}, {"m/byteorder", "big"}})),
              HasSubstr("little-endian"));
  std::string compressed = Archive({{"m/data.pkl", tensor}});
  compressed[compressed.find("PK\1\2") + 10] = 8;
  EXPECT_THAT(error(compressed), HasSubstr("compressed"));
}

}  // namespace
}  // namespace llava
