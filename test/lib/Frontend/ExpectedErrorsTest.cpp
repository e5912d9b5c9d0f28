// Every message of the front end is printed by a program in errors/: each file holds small programs, separated by lines
// of `# -----`, and says on the line of each error what it expects there (`# expected-error: text`, also `-warning`).
// `@N` after the word moves the expectation N lines.
#include "test/lib/Frontend/ProgramText.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

namespace cpflex {
namespace {

struct Expectation {
  Severity severity;
  int line;
  std::string text;
};

std::string readFile(const std::filesystem::path &path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

struct Piece {
  std::string text;
  int firstLine;
};

std::vector<Piece> piecesOf(const std::string &text) {
  std::vector<Piece> pieces{{"", 1}};
  std::istringstream lines(text);
  int number = 1;
  for (std::string line; std::getline(lines, line); ++number) {
    if (line.starts_with("# -----"))
      pieces.push_back({"", number + 1});
    else
      pieces.back().text += line + "\n";
  }
  return pieces;
}

std::vector<Expectation> expectationsOf(const std::string &text) {
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

TEST(ExpectedErrors, everyProgramGivesItsMessagesAndNoOthers) {
  int numPrograms = 0;
  for (const auto &entry : std::filesystem::directory_iterator(CPFLEX_SOURCE_DIR "/test/lib/Frontend/errors")) {
    if (entry.path().extension() != ".cpf")
      continue;
    for (const Piece &piece : piecesOf(readFile(entry.path()))) {
      std::string place = entry.path().filename().string() + ":" + std::to_string(piece.firstLine);
      ImportedProgram program = importText(piece.text);
      ++numPrograms;
      std::vector<Expectation> expected = expectationsOf(piece.text);
      EXPECT_FALSE(expected.empty()) << place << ": nothing is expected";
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
        EXPECT_TRUE(isFound[i]) << place << ": line " << expected[i].line << " of the program gives no '" << expected[i].text << "'";
    }
  }
  EXPECT_GT(numPrograms, 50);
}

} // namespace
} // namespace cpflex
