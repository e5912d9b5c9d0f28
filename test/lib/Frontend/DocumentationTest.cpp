// Every example of docs/language.md is a program that does what the text beside it says: it
// imports, or gives the errors that its comments expect.
#include "test/lib/Frontend/ExpectedDiagnostics.h"

#include <filesystem>

namespace cpflex {
namespace {

TEST(Documentation, examplesOfTheLanguageAreRight) {
  std::istringstream lines(readFile(CPFLEX_SOURCE_DIR "/docs/language.md"));
  std::string block;
  int numBlocks = 0, number = 0, begin = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line == "```python") {
      block.clear();
      begin = number;
    } else if (line == "```" && begin) {
      checkExpectations(block, "language.md:" + std::to_string(begin));
      ++numBlocks;
      begin = 0;
    } else if (begin) {
      block += line + "\n";
    }
  }
  EXPECT_GE(numBlocks, 15);
}

TEST(Documentation, examplesImport) {
  int numExamples = 0;
  for (const auto &entry : std::filesystem::directory_iterator(CPFLEX_SOURCE_DIR "/examples")) {
    if (entry.path().extension() != ".cpf")
      continue;
    ImportedProgram program = importText(readFile(entry.path().string()), {}, entry.path().string());
    EXPECT_TRUE(program.isValid) << renderDiagnostics(program.diagnostics);
    ++numExamples;
  }
  EXPECT_GE(numExamples, 8);
}

} // namespace
} // namespace cpflex
