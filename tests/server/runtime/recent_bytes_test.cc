#include "server/runtime/recent_bytes.h"

#include <gtest/gtest.h>

#include <string>

namespace llava {
namespace {

std::string Names(const RecentBytes<int>& recent) {
  std::string names;
  for (const auto& entry : recent.entries()) names += entry.key;
  return names;
}

TEST(RecentBytesTest, TheLeastRecentlyUsedComesFirst) {
  RecentBytes<int> recent;
  recent.Put("a", 1, 10);
  recent.Put("b", 2, 20);
  recent.Put("c", 3, 30);
  EXPECT_EQ(*recent.Find("a"), 10);
  EXPECT_EQ(recent.Find("d"), nullptr);
  EXPECT_TRUE(recent.contains("b")) << "which is no use of it";
  EXPECT_EQ(Names(recent), "bca");
  recent.Put("b", 20, 21);
  EXPECT_EQ(Names(recent), "cab");
  EXPECT_EQ(recent.bytes(), 24u);
  EXPECT_EQ(*recent.Find("b"), 21);
}

TEST(RecentBytesTest, WhatGoesGivesItsBytesBack) {
  RecentBytes<int> recent;
  for (const char* name : {"a", "b", "c", "d", "e"}) recent.Put(name, 10);
  recent.RemoveOldest();
  recent.Remove("d");
  recent.Remove("nobody");
  EXPECT_EQ(Names(recent), "bce");
  EXPECT_EQ(
      recent.RemoveIf([&](const auto& entry) { return recent.bytes() > 10 && entry.key != "b"; }),
      2u);
  EXPECT_EQ(Names(recent), "b");
  EXPECT_EQ(recent.bytes(), 10u);
  EXPECT_EQ(recent.size(), 1u);
}

}  // namespace
}  // namespace llava
