// RUN: %cpflex-opt %s --mask-enumerate-residuals --canonicalize --cse --split-input-file | FileCheck %s
// Enumerating twice gives the same functions.
// RUN: %cpflex-opt %s --mask-enumerate-residuals --mask-enumerate-residuals --canonicalize --cse --split-input-file | FileCheck %s

mask.capture @doc : i32 ["KV_LEN"]

mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.load @doc[%q] : (i64) -> i64
  %1 = mask.load @doc[%kv] : (i64) -> i64
  %2 = mask.eq %0, %1 : i64
  %3 = mask.le %kv, %q : i64
  %4 = mask.and %2, %3 : i1
  mask.yield %4 : i1
}
// The cheaper residual comes first.
// CHECK-LABEL: mask.predicate @f.residual1(
// CHECK-NEXT: %[[R:.*]] = mask.le %kv, %q
// CHECK-NEXT: mask.yield %[[R]]
// CHECK-LABEL: mask.predicate @f.residual2(
// CHECK-NEXT: mask.load @doc[%q]
// CHECK-NEXT: mask.load @doc[%kv]
// CHECK-NEXT: %[[R:.*]] = mask.eq
// CHECK-NEXT: mask.yield %[[R]]
// CHECK-NOT: residual

// -----

// A predicate without logic has no residual but itself.
// CHECK-LABEL: mask.predicate @causal(
// CHECK-NOT: residual
mask.predicate @causal(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.le %kv, %q : i64
  mask.yield %0 : i1
}

// -----

// Complements of conjunctions and arms of selects.
mask.predicate @g(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.lt %q, %kv : i64
  %1 = mask.eq %h, %b : i64
  %2 = mask.xor %1, %0 : i1
  %3 = mask.or %2, %0 : i1
  %4 = mask.not %3 : i1
  mask.yield %4 : i1
}
// CHECK-LABEL: mask.predicate @g.residual1(
// CHECK-NEXT: %[[R:.*]] = mask.ge %q, %kv
// CHECK-NEXT: mask.yield %[[R]]
// CHECK-LABEL: mask.predicate @g.residual2(
// CHECK: mask.xor
// CHECK-NEXT: %[[R:.*]] = mask.not
// CHECK-NEXT: mask.yield %[[R]]
// CHECK-NOT: residual
