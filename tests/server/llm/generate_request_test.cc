#include "server/llm/generate_request.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "model/text/chat_template.h"
#include "tests/server/llm/llm_test_server.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using ::testing::ElementsAre;

// Where the template names the end token, too, as chatml_direct does that of LLaVA-1.6-34B.
TEST(GenerateRequestTest, AnEndTokenThatTheTemplateNamesIsIgnoredWithTheOthers) {
  const TempFolder folder;
  auto form = nlohmann::json::parse(ChatTemplate::Builtin("v1").ToJson());
  form["stop"] = {"</s>", "###"};
  LlmOptions options;
  options.language.model = (FixturesDir() / "tiny-llava").string();
  options.language.chat_template = folder.Write("template.json", form.dump());
  const LlmTestServer server(options);
  v1::GenerateRequest request = server.Ask("Hello?");
  EXPECT_THAT(MakeJob(request, *server.Renumbered(1))->stop.stop, ElementsAre("</s>", "###"));
  request.mutable_sampling()->set_ignore_eos(true);
  EXPECT_THAT(MakeJob(request, *server.Renumbered(1))->stop.stop, ElementsAre("###"));
}

}  // namespace
}  // namespace llava
