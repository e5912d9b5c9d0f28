// What about a program is probably a mistake, although it has a meaning? What depends on bound arrays the classifier
// decides exactly.
#pragma once

#include "lib/API/cpflex.h"

namespace cpflex {

/// Unused declarations, windows with one key more than their width, scores of -inf.
std::vector<Diagnostic> lintProgram(const Program &program);

/// Conditions that decide nothing and loads that may leave their arrays, whatever is bound.
std::vector<Diagnostic> lintWithoutBinding(const Program &program);

/// Warnings about one entry point over one binding, each at its place in the source and with an example: rows without
/// keys, keys without queries, nothing to skip, no tile decided, keys after the query in a mask named causal, loads
/// outside of arrays, conditions that decide nothing. Thread safe.
StatusOr<std::vector<Diagnostic>> lintEntry(const Program &program, const EntryPoint &entry, const Binding &binding,
                                            int threads);

/// A warning at the declaration of a capture or param.
Diagnostic warningAtDeclaration(const Program &program, const std::string &name, std::string message);

/// Line `line`, from 1, of a source that an EntryPoint or a Diagnostic names; empty when it cannot be read.
std::string sourceLine(const Program &program, const std::string &file, int line);

} // namespace cpflex
