// RUN: %cpflex-opt %s --mask-narrow-integers --canonicalize --split-input-file | FileCheck %s
// RUN: %cpflex-opt %s --mask-narrow-integers=bounded-params=true --canonicalize --split-input-file \
// RUN:   | FileCheck %s --check-prefixes=CHECK,BOUNDED

// CHECK-LABEL: mask.predicate @causal(%b: i32, %h: i32, %q: i32, %kv: i32) -> i1 {
mask.predicate @causal(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK: %[[D:.*]] = mask.sub %q, %kv : i32
  %0 = mask.sub %q, %kv : i64
  %8 = mask.constant 8 : i64
  // CHECK: mask.lt %[[D]], %{{.*}} : i32
  %r = mask.lt %0, %8 : i64
  mask.yield %r : i1
}

// -----

mask.param @W : i64

// CHECK-LABEL: mask.predicate @window
mask.predicate @window(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK: mask.sub %q, %kv : i32
  %d = mask.sub %q, %kv : i64
  %w = mask.param_value @W : i64
  // BOUNDED: %[[W:.*]] = mask.param_value @W : i32
  // BOUNDED: mask.lt %{{.*}}, %[[W]] : i32
  %r = mask.lt %d, %w : i64
  mask.yield %r : i1
}

// -----

mask.capture @doc : i32 ["KV_LEN"]
mask.capture @big : i64 ["KV_LEN"]
mask.capture @bounded : i64 ["KV_LEN"] {lo = 0 : i64, hi = 100 : i64}

// CHECK-LABEL: mask.predicate @loads
mask.predicate @loads(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK: %[[DOC:.*]] = mask.load @doc[%q] : (i32) -> i32
  %0 = mask.load @doc[%q] : (i64) -> i64
  // CHECK: %[[BIG:.*]] = mask.load @big[%[[DOC]]] : (i32) -> i64
  %1 = mask.load @big[%0] : (i64) -> i64
  // CHECK: %[[BOUNDED:.*]] = mask.load @bounded[%[[BIG]]] : (i64) -> i32
  %2 = mask.load @bounded[%1] : (i64) -> i64
  // CHECK: mask.eq %[[DOC]], %[[BOUNDED]] : i32
  %r = mask.eq %0, %2 : i64
  mask.yield %r : i1
}

// -----

mask.capture @doc : i32 ["KV_LEN"]

// The sum of two values of an i32 array needs 33 bits.
// CHECK-LABEL: mask.predicate @sumThatNeedsMore
mask.predicate @sumThatNeedsMore(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.load @doc[%q] : (i64) -> i64
  %1 = mask.load @doc[%kv] : (i64) -> i64
  // CHECK: mask.add %{{.*}}, %{{.*}} : i64
  %2 = mask.add %0, %1 : i64
  // CHECK: mask.lt %{{.*}}, %{{.*}} : i64
  %r = mask.lt %2, %h : i64
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: mask.predicate @shiftsThatNeedMore
mask.predicate @shiftsThatNeedMore(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK: mask.shr %{{.*}}, %{{.*}} : i64
  %0 = mask.shr %q, %kv : i64
  %3 = mask.constant 3 : i64
  // CHECK: mask.shr %kv, %{{.*}} : i32
  %1 = mask.shr %kv, %3 : i64
  %r = mask.lt %0, %1 : i64
  mask.yield %r : i1
}

// -----

mask.capture @idx : i32 ["N"]

// CHECK-LABEL: mask.predicate @reductions
mask.predicate @reductions(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK: %[[N:.*]] = mask.dim "N" : i32
  %n = mask.dim "N" : i64
  // CHECK: mask.reduce any %[[N]] : i32 -> i1 {
  // CHECK-NEXT: ^bb0(%[[I:.*]]: i32):
  // CHECK-NEXT: mask.load @idx[%[[I]]] : (i32) -> i32
  // CHECK-NEXT: mask.eq %{{.*}}, %kv : i32
  %r = mask.reduce any %n : i64 -> i1 {
  ^bb0(%i: i64):
    %x = mask.load @idx[%i] : (i64) -> i64
    %e = mask.eq %x, %kv : i64
    mask.yield %e : i1
  }
  mask.yield %r : i1
}

// -----

mask.capture @table : f32 ["N"] {grad}

// CHECK-LABEL: mask.score @bias(%s: f32, %b: i32, %h: i32, %q: i32, %kv: i32) -> f32 {
mask.score @bias(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  // CHECK: %[[D:.*]] = mask.sub %q, %kv : i32
  %d = mask.sub %q, %kv : i64
  // CHECK-NEXT: mask.to_float %[[D]] : i32 -> f32
  %f = mask.to_float %d : i64 -> f32
  %r = mask.add %s, %f : f32
  mask.yield %r : f32
}
// CHECK-LABEL: mask.score_gradient @bias.gradient(%gradient: f32, %s: f32, %b: i32, %h: i32, %q: i32, %kv: i32) -> f32 {
mask.score_gradient @bias.gradient(%g: f32, %s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  // CHECK: %[[D:.*]] = mask.sub %q, %kv : i32
  %d = mask.sub %q, %kv : i64
  // CHECK: mask.scatter_add %gradient, @table[%[[D]]] : f32[i32]
  mask.scatter_add %g, @table[%d] : f32[i64]
  mask.yield %g : f32
}
