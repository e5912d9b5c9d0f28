// Every message of the front end is printed by a program in errors/: each file holds small
// programs, separated by lines of `# -----`, that say what they expect (ExpectedDiagnostics.h).
#include "test/lib/Frontend/ExpectedDiagnostics.h"

#include <filesystem>

namespace cpflex {
namespace {

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

TEST(ExpectedErrors, everyProgramGivesItsMessagesAndNoOthers) {
  int numPrograms = 0;
  for (const auto &entry : std::filesystem::directory_iterator(CPFLEX_SOURCE_DIR "/test/lib/Frontend/errors")) {
    if (entry.path().extension() != ".cpf")
      continue;
    for (const Piece &piece : piecesOf(readFile(entry.path().string()))) {
      std::string place = entry.path().filename().string() + ":" + std::to_string(piece.firstLine);
      EXPECT_FALSE(expectationsOf(piece.text).empty()) << place << ": nothing is expected";
      checkExpectations(piece.text, place);
      ++numPrograms;
    }
  }
  EXPECT_GT(numPrograms, 50);
}

} // namespace
} // namespace cpflex
