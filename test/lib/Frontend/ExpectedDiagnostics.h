// Checks the diagnostics of a program against what comments in it expect: `# expected-error: text`
// on the error's line, also `-warning`; `@N` after the word moves the expectation N lines.
#pragma once

#include "test/lib/Frontend/ProgramText.h"

#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <sstream>

namespace cpflex {

struct Expectation {
  Severity severity;
  int line;
  std::string text;
};

inline std::string readFile(const std::string &path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

inline std::vector<Expectation> expectationsOf(const std::string &text) {
  static const std::regex pattern("# expected-(error|warning)(@([+-]?[0-9]+))?: (.*)");
  std::vector<Expectation> expectations;
  std::istringstream lines(text);
  int number = 1;
  for (std::string line; std::getline(lines, line); ++number) {
    std::smatch match;
    if (std::regex_search(line, match, pattern))
      expectations.push_back({match[1] == "error" ? Severity::Error : Severity::Warning,
                              number + (match[3].matched ? std::stoi(match[3]) : 0), match[4]});
  }
  return expectations;
}

/// Fails the test unless the program gives exactly the expected errors and warnings; `place` names
/// it.
inline void checkExpectations(const std::string &text, const std::string &place) {
  ImportedProgram program = importText(text);
  std::vector<Expectation> expected = expectationsOf(text);
  std::vector<bool> isFound(expected.size(), false);
  for (const Diagnostic &diagnostic : program.diagnostics.all()) {
    bool isExpected = false;
    for (size_t i = 0; i < expected.size() && !isExpected; ++i) {
      isExpected = !isFound[i] && expected[i].severity == diagnostic.severity && expected[i].line == diagnostic.line &&
                   diagnostic.message.find(expected[i].text) != std::string::npos;
      isFound[i] = isFound[i] || isExpected;
    }
    EXPECT_TRUE(isExpected) << place << ": unexpected\n" << renderDiagnostic(diagnostic);
  }
  for (size_t i = 0; i < expected.size(); ++i)
    EXPECT_TRUE(isFound[i]) << place << ": line " << expected[i].line << " gives no '" << expected[i].text << "'";
  EXPECT_EQ(program.isValid, !program.diagnostics.hasErrors()) << place;
}

} // namespace cpflex
