#include <cstdio>

#include "model/eval/report/report.h"

namespace llava {
namespace {

constexpr const char* kStyle =
    ":root{color-scheme:light dark}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    // On narrow screens what is wide moves by itself, and the names stay in sight.
    ".wide{overflow-x:auto}.wide svg{min-width:44rem}"
    "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
    "th,td{padding:.25rem .7rem;text-align:right;vertical-align:top;border-bottom:1px solid #8884}"
    "th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:Canvas}"
    "td small{display:block;white-space:nowrap}"
    "tr.published,td small{color:GrayText;color:color-mix(in srgb,CanvasText 65%,Canvas)}"
    "svg{width:100%;height:auto}svg text{fill:currentColor}"
    "@media(max-width:40rem){th,td{padding:.25rem .4rem}"
    "th:first-child,td:first-child{min-width:8rem}}";

std::string Number(double value, int decimals) {
  char text[48];
  std::snprintf(text, sizeof(text), "%.*f", decimals, value);
  return text;
}

std::string Value(const ReportCell& cell, int decimals) {
  return cell.value ? Number(*cell.value, decimals) : "";
}

std::string Range(const ReportCell& cell, int decimals) {
  if (!cell.low || !cell.high) return "";
  return Number(*cell.low, decimals) + " - " + Number(*cell.high, decimals);
}

// Texts within a cell of a Markdown table.
std::string EscapedMarkdown(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '|' || c == '\\' || c == '*' || c == '_' || c == '<') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  return escaped;
}

}  // namespace

std::string EscapedHtml(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string ReportMarkdown(const std::string& title, const std::vector<ReportTable>& tables) {
  std::string text = "# " + title + "\n";
  for (const ReportTable& table : tables) {
    text += "\n## " + table.title + "\n\n";
    if (!table.note.empty()) text += table.note + "\n\n";
    text += "| model |";
    std::string line = "| --- |";
    for (const std::string& column : table.columns) {
      (text += ' ') += EscapedMarkdown(column) + " |";
      line += " ---: |";
    }
    text += "\n" + line + "\n";
    for (const ReportRow& row : table.rows) {
      const std::string name = EscapedMarkdown(row.name);
      text += row.published ? "| " + name + " (published) |" : "| **" + name + "** |";
      for (size_t i = 0; i < row.cells.size(); ++i) {
        (text += ' ') += Value(row.cells[i], table.decimals);
        const std::string range = Range(row.cells[i], table.decimals);
        // One interval a row is enough for reading: that of the last column, which is the average.
        if (i + 1 == row.cells.size() && !range.empty()) text += " (" + range + ")";
        text += " |";
      }
      text += "\n";
    }
  }
  return text;
}

std::string ReportHtml(const std::string& title, const std::vector<ReportTable>& tables) {
  std::string html =
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width\">\n<title>" +
      EscapedHtml(title) + "</title>\n<style>" + kStyle + "</style>\n</head>\n<body>\n<h1>" +
      EscapedHtml(title) + "</h1>\n";
  for (const ReportTable& table : tables) {
    html += "<h2>" + EscapedHtml(table.title) + "</h2>\n<p>" + EscapedHtml(table.note) +
            "</p>\n<div class=\"wide\">\n<table>\n<tr><th>model</th>";
    for (const std::string& column : table.columns) {
      html += "<th>" + EscapedHtml(column) + "</th>";
    }
    html += "</tr>\n";
    for (const ReportRow& row : table.rows) {
      html += row.published ? "<tr class=\"published\"><td>" : "<tr><td>";
      html += EscapedHtml(row.name) + (row.published ? " (published)" : "") + "</td>";
      for (size_t i = 0; i < row.cells.size(); ++i) {
        const std::string range = Range(row.cells[i], table.decimals);
        const bool last = i + 1 == row.cells.size();  // as in Markdown: this one is to be read
        html += range.empty() ? "<td>" : "<td title=\"" + range + "\">";
        html += Value(row.cells[i], table.decimals);
        if (last && !range.empty()) html += "<small>" + range + "</small>";
        html += "</td>";
      }
      html += "</tr>\n";
    }
    html += "</table>\n</div>\n<div class=\"wide\">\n" + BarsSvg(table) + "\n</div>\n";
  }
  return html + "</body>\n</html>\n";
}

}  // namespace llava
