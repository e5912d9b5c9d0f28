// What the syntax tree needs besides its declarations: spelling of operators and destruction
// without recursion.
#include "lib/Frontend/ast.h"

namespace cpflex::ast {

const char *toString(OpKind op) {
  switch (op) {
  case OpKind::Add: return "+";
  case OpKind::Sub: return "-";
  case OpKind::Mul: return "*";
  case OpKind::Div: return "/";
  case OpKind::FloorDiv: return "//";
  case OpKind::Mod: return "%";
  case OpKind::Pow: return "**";
  case OpKind::Shl: return "<<";
  case OpKind::Shr: return ">>";
  case OpKind::BitAnd: return "&";
  case OpKind::BitOr: return "|";
  case OpKind::BitXor: return "^";
  case OpKind::Neg: return "-";
  case OpKind::Plus: return "+";
  case OpKind::Invert: return "~";
  case OpKind::Not: return "not";
  case OpKind::Eq: return "==";
  case OpKind::Ne: return "!=";
  case OpKind::Lt: return "<";
  case OpKind::Le: return "<=";
  case OpKind::Gt: return ">";
  case OpKind::Ge: return ">=";
  case OpKind::In: return "in";
  case OpKind::NotIn: return "not in";
  }
  return "";
}

Expr::~Expr() {
  // The left spine of an operator chain may be kMaxTerms long: it is taken apart in a loop.
  while (!operands.empty() && operands.front() && !operands.front()->operands.empty()) {
    ExprRef first = std::move(operands.front());
    operands.front() = std::move(first->operands.front());
    first->operands.front() = nullptr;
  }
}

} // namespace cpflex::ast
