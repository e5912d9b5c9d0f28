// RUN: %cpflex-opt %s --mask-differentiate-scores --canonicalize --cse --split-input-file | FileCheck %s

mask.capture @slopes : f32 ["H"]

mask.score @additive(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %0 = mask.load @slopes[%h] : (i64) -> f32
  %1 = mask.add %s, %0 : f32
  mask.yield %1 : f32
}
// CHECK-LABEL: mask.score_gradient @additive.gradient(%gradient: f32, %s: f32,
// CHECK-NEXT: mask.yield %gradient : f32

// -----

mask.score @constantFactors(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %2 = mask.constant 2.0 : f32
  %8 = mask.constant 8.0 : f32
  %0 = mask.mul %s, %2 : f32
  %1 = mask.neg %0 : f32
  %3 = mask.div %1, %8 : f32
  mask.yield %3 : f32
}
// CHECK-LABEL: mask.score_gradient @constantFactors.gradient
// CHECK-NEXT: %[[C:.*]] = mask.constant -2.500000e-01 : f32
// CHECK-NEXT: %[[R:.*]] = mask.mul %gradient, %[[C]] : f32
// CHECK-NEXT: mask.yield %[[R]] : f32

// -----

mask.score @unused(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %0 = mask.floor %s : f32
  mask.yield %0 : f32
}
// CHECK-LABEL: mask.score_gradient @unused.gradient
// CHECK-NEXT: %[[C:.*]] = mask.constant 0.000000e+00 : f32
// CHECK-NEXT: mask.yield %[[C]] : f32

// -----

mask.score @softCap(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %c = mask.constant 50.0 : f32
  %0 = mask.div %s, %c : f32
  %1 = mask.tanh %0 : f32
  %2 = mask.mul %1, %c : f32
  mask.yield %2 : f32
}
// What may not be finite is guarded once, at the end; the factors 50 and 1 / 50 cancel.
// CHECK-LABEL: mask.score_gradient @softCap.gradient
// CHECK-DAG: %[[ZERO:.*]] = mask.constant 0.000000e+00 : f32
// CHECK-DAG: %[[ONE:.*]] = mask.constant 1.000000e+00 : f32
// CHECK: %[[T:.*]] = mask.tanh
// CHECK-NEXT: %[[TT:.*]] = mask.mul %[[T]], %[[T]]
// CHECK-NEXT: %[[D:.*]] = mask.sub %[[ONE]], %[[TT]]
// CHECK-NEXT: %[[G:.*]] = mask.mul %gradient, %[[D]]
// CHECK-NEXT: %[[N:.*]] = mask.ne %gradient, %[[ZERO]]
// CHECK-NEXT: %[[R:.*]] = mask.select %[[N]], %[[G]], %[[ZERO]]
// CHECK-NEXT: mask.yield %[[R]]

// -----

mask.capture @table : f32 ["N", "H"] {grad}
mask.capture @fixed : f32 ["N", "H"]

mask.score @bias(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %d = mask.sub %q, %kv : i64
  %0 = mask.load @table[%d, %h] : (i64, i64) -> f32
  %1 = mask.load @fixed[%d, %h] : (i64, i64) -> f32
  %2 = mask.add %0, %1 : f32
  %3 = mask.add %s, %2 : f32
  mask.yield %3 : f32
}
// CHECK-LABEL: mask.score_gradient @bias.gradient
// CHECK-NEXT: %[[D:.*]] = mask.sub %q, %kv
// CHECK-NEXT: mask.scatter_add %gradient, @table[%[[D]], %h] : f32[i64, i64]
// CHECK-NEXT: mask.yield %gradient

// -----

mask.score @arms(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %minusInfinity = mask.constant 0xFF800000 : f32
  %c = mask.lt %q, %kv : i64
  %0 = mask.select %c, %minusInfinity, %s : i1, f32
  mask.yield %0 : f32
}
// CHECK-LABEL: mask.score_gradient @arms.gradient
// CHECK: %[[ZERO:.*]] = mask.constant 0.000000e+00 : f32
// CHECK-NEXT: %[[C:.*]] = mask.lt %q, %kv
// CHECK-NEXT: %[[R:.*]] = mask.select %[[C]], %[[ZERO]], %gradient
// CHECK-NEXT: mask.yield %[[R]]

// -----

mask.capture @weights : f32 ["K"] {grad}

mask.score @reductions(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %k = mask.dim "K" : i64
  %0 = mask.reduce sum %k : i64 -> f32 {
  ^bb0(%i: i64):
    %w = mask.load @weights[%i] : (i64) -> f32
    %p = mask.mul %w, %s : f32
    mask.yield %p : f32
  }
  mask.yield %0 : f32
}
// One loop sums what flows into the score and scatters what flows into the array.
// CHECK-LABEL: mask.score_gradient @reductions.gradient
// CHECK: %[[K:.*]] = mask.dim "K"
// CHECK-NEXT: %[[R:.*]] = mask.reduce sum %[[K]] : i64 -> f32 {
// CHECK-NEXT: ^bb0(%[[I:.*]]: i64):
// CHECK-NEXT: %[[W:.*]] = mask.load @weights[%[[I]]]
// CHECK: mask.mul %gradient, %s
// CHECK: mask.mul %gradient, %[[W]]
// CHECK: mask.scatter_add %{{.*}}, @weights[%[[I]]]
// CHECK: mask.yield
// CHECK-NOT: mask.reduce
// CHECK: mask.yield %[[R]]

// -----

mask.capture @weights : f32 ["2"] {grad}

mask.score @fewConstantIndices(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %2 = mask.constant 2 : i64
  %0 = mask.reduce sum %2 : i64 -> f32 {
  ^bb0(%i: i64):
    %w = mask.load @weights[%i] : (i64) -> f32
    mask.yield %w : f32
  }
  %1 = mask.add %s, %0 : f32
  mask.yield %1 : f32
}
// Scatters stand outside of loops where the indices are few.
// CHECK-LABEL: mask.score_gradient @fewConstantIndices.gradient
// CHECK-DAG: %[[ZERO:.*]] = mask.constant 0 : i64
// CHECK-DAG: %[[ONE:.*]] = mask.constant 1 : i64
// CHECK: mask.scatter_add %gradient, @weights[%[[ONE]]] : f32[i64]
// CHECK-NEXT: mask.scatter_add %gradient, @weights[%[[ZERO]]] : f32[i64]
// CHECK-NEXT: mask.yield %gradient
