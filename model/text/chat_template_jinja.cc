// Chat templates as the Jinja programs of transformers.

#include <nlohmann/json.hpp>
#include <string>

#include "model/text/chat_template.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

// A text as Jinja has it: JSON's escapes are a part of Python's.
std::string Quoted(const std::string& text) { return nlohmann::json(text).dump(); }

std::string Put(const std::string& text) {
  return text.empty() ? "" : "{{ " + Quoted(text) + " }}";
}

}  // namespace

std::string ChatTemplate::ToJinja() const {
  const Form& form = prompt_;
  const std::string suffix = Quoted(form.image_suffix),
                    last_suffix = Quoted(std::string(StripUtf8Right(form.image_suffix)));
  // Contents are texts or lists of parts.
  std::string program =
      "{% macro words(m) %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
      "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
      "{% endif %}{% endmacro %}";
  program +=
      "{% if messages[0]['role'] == 'system' %}{% set system = words(messages[0]) %}"
      "{% set messages = messages[1:] %}{% else %}{% set system = " +
      Quoted(system_) +
      " %}{% endif %}{% if system %}{% set system = " + Quoted(form.system_prefix) +
      " ~ system ~ " + Quoted(form.system_suffix) + " %}{% endif %}";
  if (!system_in_question_) program += "{{ system }}";
  program += "{% for m in messages %}{% if m['role'] == 'user' %}";
  if (!form.user_separator.empty()) {
    program += "{% if not loop.first %}" + Put(form.user_separator) + "{% endif %}";
  }
  program += Put(form.user_prefix);
  if (system_in_question_) program += "{% if loop.first %}{{ system }}{% endif %}";
  program +=
      "{% if m['content'] is not string %}"
      "{% for p in m['content'] if p['type'] == 'image' %}" +
      Put(form.image_prefix + std::string(kImageMark)) + "{{ " + last_suffix +
      " if loop.last and not words(m) else " + suffix + " }}{% endfor %}{% endif %}" +
      "{{ words(m) }}" + Put(form.user_suffix);
  program += "{% else %}" + Put(form.assistant_prefix) + "{% if words(m) %}" +
             Put(form.before_answer) + "{{ words(m) }}{% endif %}" + Put(form.assistant_suffix) +
             "{% endif %}{% endfor %}";
  program += "{% if add_generation_prompt %}" + Put(form.assistant_prefix) + "{% endif %}";
  return program;
}

}  // namespace llava
