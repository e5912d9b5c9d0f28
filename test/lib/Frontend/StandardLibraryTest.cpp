// Every file of the standard library imports, every mask and score function has a docstring and can
// be used by its name.
#include "lib/Std/StandardLibrary.h"
#include "test/lib/Frontend/ProgramText.h"

#include <gtest/gtest.h>

namespace cpflex {
namespace {

TEST(StandardLibrary, importsWhole) {
  EXPECT_GE(standardLibrary().size(), 7u);
  for (const EmbeddedFile &file : standardLibrary()) {
    ImportedProgram program = importText(std::string(file.text), {}, std::string(file.name));
    EXPECT_TRUE(program.isValid) << renderDiagnostics(program.diagnostics);
  }
}

TEST(StandardLibrary, namesWorkByThemselvesAndAreExplained) {
  std::set<std::string> names;
  for (const EmbeddedFile &file : standardLibrary()) {
    DiagnosticList diagnostics;
    ast::File tree = parseFile(std::string(file.name), std::string(file.text), diagnostics);
    EXPECT_FALSE(tree.docstring.empty()) << file.name;
    for (const ast::StmtRef &statement : tree.statements) {
      if (statement->kind != ast::StmtKind::Function || statement->decorators.empty())
        continue;
      EXPECT_FALSE(statement->docstring.empty()) << statement->name;
      EXPECT_TRUE(names.insert(statement->name).second) << statement->name << " is defined twice";
      std::string kind = statement->decorators[0]->name;
      ImportedProgram program = importText("from cpflex.std import " + statement->name + "\nattention(\"a\", " + kind +
                                           "=" + statement->name + ")\n");
      EXPECT_TRUE(program.isValid) << statement->name << "\n" << renderDiagnostics(program.diagnostics);
    }
  }
  EXPECT_GE(names.size(), 50u);
}

TEST(StandardLibrary, sinksAreACapture) {
  ImportedProgram program =
      importText("from cpflex.std import causal, sinks\nattention(\"a\", mask=causal, sink=sinks)\n");
  EXPECT_NE(program.module.find("mask.capture @sinks : f32 [\"H\"] {grad}"), std::string::npos)
      << renderDiagnostics(program.diagnostics);
}

} // namespace
} // namespace cpflex
