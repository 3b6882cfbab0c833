#include "server/gateway/chat_page.h"

#include <string>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/digest/sha256.h"

namespace llava {

extern const char kChatPageHtml[];  // made from chat_page.html by the build

namespace {

// The hash by which a policy allows what stands between two tags.
std::string HashOf(std::string_view html, std::string_view begin, std::string_view end) {
  const size_t from = html.find(begin) + begin.size();
  const std::string digest = ToBytes(HashBytes(html.substr(from, html.find(end, from) - from)));
  return absl::StrCat("'sha256-", absl::Base64Escape(digest), "'");
}

}  // namespace

HttpResponse ChatPage() {
  static const HttpResponse page = [] {
    const std::string html = kChatPageHtml;
    const std::string policy = absl::StrCat(
        "default-src 'none'; script-src ", HashOf(html, "<script>", "</script>"), "; style-src ",
        HashOf(html, "<style>", "</style>"),
        "; img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'");
    return HttpResponse{200,
                        "text/html; charset=utf-8",
                        html,
                        {{"Content-Security-Policy", policy},
                         {"Referrer-Policy", "no-referrer"},
                         {"Cross-Origin-Opener-Policy", "same-origin"}}};
  }();
  return page;
}

}  // namespace llava
