// RUN: %cpflex-opt %s --mask-apply-ranges --canonicalize --split-input-file | FileCheck %s

// CHECK-LABEL: @positionsAreNotNegative
mask.predicate @positionsAreNotNegative(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.constant 0 : i64
  // CHECK-NEXT: mask.le %kv, %q
  // CHECK-NEXT: mask.yield
  %x = mask.ge %kv, %0 : i64
  %y = mask.le %kv, %q : i64
  %r = mask.and %x, %y : i1
  mask.yield %r : i1
}

// -----

mask.capture @offset : i32 ["N"]
mask.capture @doc : i32 ["KV_LEN"]

// Offsets of an i32 array cannot make the differences wrap.
// CHECK-LABEL: @sharedOffsetIsDropped
mask.predicate @sharedOffsetIsDropped(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %o = mask.load @offset[%b] : (i64) -> i64
  %x = mask.sub %q, %o : i64
  %y = mask.sub %kv, %o : i64
  // CHECK-NEXT: mask.ge %q, %kv
  // CHECK-NEXT: mask.yield
  %r = mask.ge %x, %y : i64
  mask.yield %r : i1
}

// -----

mask.capture @offset : i64 ["N"]

// CHECK-LABEL: @sharedOffsetThatMayWrapStays
mask.predicate @sharedOffsetThatMayWrapStays(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %o = mask.load @offset[%b] : (i64) -> i64
  // CHECK: mask.sub
  %x = mask.sub %q, %o : i64
  // CHECK: mask.sub
  %y = mask.sub %kv, %o : i64
  %r = mask.ge %x, %y : i64
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @differenceAgainstZero
mask.predicate @differenceAgainstZero(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.constant 0 : i64
  %d = mask.sub %q, %kv : i64
  // CHECK-NEXT: mask.ge %q, %kv
  // CHECK-NEXT: mask.yield
  %r = mask.ge %d, %0 : i64
  mask.yield %r : i1
}

// -----

mask.capture @kind : ui8 ["KV_LEN"] {hi = 16 : i64}

// CHECK-LABEL: @factsBoundLoads
mask.predicate @factsBoundLoads(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %16 = mask.constant 16 : i64
  %20 = mask.constant 20 : i64
  // CHECK-NEXT: %[[K:.*]] = mask.load @kind[%kv]
  %k = mask.load @kind[%kv] : (i64) -> i64
  %m = mask.mod %k, %16 : i64
  %a = mask.abs %m : i64
  %x = mask.min %a, %20 : i64
  // CHECK-NEXT: mask.lt %q, %[[K]]
  %r = mask.lt %q, %x : i64
  mask.yield %r : i1
}

// -----

mask.param @W : i64

// CHECK-LABEL: @paramsMayBeAnything
mask.predicate @paramsMayBeAnything(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.constant 0 : i64
  %w = mask.param_value @W : i64
  // CHECK: mask.lt
  %r = mask.lt %w, %0 : i64
  mask.yield %r : i1
}
