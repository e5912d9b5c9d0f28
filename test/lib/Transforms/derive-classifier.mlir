// RUN: %cpflex-opt %s --mask-derive-classifier | FileCheck %s
// Deriving twice gives one classifier.
// RUN: %cpflex-opt %s --mask-derive-classifier --mask-derive-classifier | FileCheck %s --check-prefix=ONCE

// ONCE-COUNT-2: mask.classifier
// ONCE-NOT: mask.classifier

mask.capture @doc : i32 ["B", "KV_LEN"]
mask.param @W : i64

// CHECK: mask.predicate @f
mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.load @doc[%b, %q] : (i64, i64) -> i64
  %1 = mask.constant 5 : i64
  %2 = mask.param_value @W : i64
  %3 = mask.add %0, %1 : i64
  %4 = mask.lt %3, %2 : i64
  mask.yield %4 : i1
}
// CHECK-LABEL: mask.classifier @f.classifier(%b: !mask.interval<i64>, %h: !mask.interval<i64>, %q: !mask.interval<i64>, %kv: !mask.interval<i64>) -> !mask.interval<i1> {
// CHECK-NEXT: %[[X:.*]] = mask.load @doc[%b, %q] : (!mask.interval<i64>, !mask.interval<i64>) -> !mask.interval<i64>
// CHECK-NEXT: %[[C:.*]] = mask.constant interval 5 : i64
// CHECK-NEXT: %[[W:.*]] = mask.param_value @W : !mask.interval<i64>
// CHECK-NEXT: %[[SUM:.*]] = mask.add %[[X]], %[[C]] : !mask.interval<i64>
// CHECK-NEXT: %[[R:.*]] = mask.lt %[[SUM]], %[[W]] : !mask.interval<i64>
// CHECK-NEXT: mask.yield %[[R]] : !mask.interval<i1>

mask.predicate @member(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %n = mask.dim "KV_LEN" : i64
  %r = mask.reduce any %n : i64 -> i1 {
  ^bb0(%i: i64):
    %x = mask.load @doc[%b, %i] : (i64, i64) -> i64
    %e = mask.eq %x, %kv : i64
    mask.yield %e : i1
  }
  mask.yield %r : i1
}
// CHECK-LABEL: mask.classifier @member.classifier
// CHECK-NEXT: %[[N:.*]] = mask.dim "KV_LEN" : !mask.interval<i64>
// CHECK-NEXT: mask.reduce any %[[N]] : !mask.interval<i64> -> !mask.interval<i1> {
// CHECK-NEXT: ^bb0(%[[I:.*]]: !mask.interval<i64>):
// CHECK-NEXT: mask.load @doc[%b, %[[I]]]
// CHECK-NEXT: mask.eq %{{.*}}, %kv : !mask.interval<i64>
// CHECK-NEXT: mask.yield %{{.*}} : !mask.interval<i1>
